/** Where the pictures of a sheet lie: rows of `columns` pictures without gaps. */
import type { Dataset } from "../../api/types";

const SIDE = 84;
const STRIP_HEIGHT = 12;
const STRIP_WIDTH = 720;

export interface Cell {
  /** Returns the style of an element that shows the picture at a place of the sheet. */
  style: (place: number) => Record<string, string>;
}

/** Returns how to show single pictures of a sheet. Small ones are enlarged by whole factors, large ones reduced. */
export function cellOf({ width, height }: Pick<Dataset, "width" | "height">, columns: number, rows: number, url: string | null): Cell {
  const strip = height === 1;
  const side = Math.max(width, height);
  const scale = strip ? Math.max(1, Math.floor(STRIP_WIDTH / width)) : side > SIDE ? Math.min(1, 168 / side) : Math.floor(SIDE / side);
  const shown = { width: Math.round(width * scale), height: strip ? STRIP_HEIGHT : Math.round(height * scale) };
  return {
    style: (place) => ({
      width: `${shown.width}px`,
      height: `${shown.height}px`,
      ...(url !== null && {
        backgroundImage: `url("${url}")`,
        backgroundSize: `${columns * shown.width}px ${rows * shown.height}px`,
        backgroundPosition: `-${(place % columns) * shown.width}px -${Math.floor(place / columns) * shown.height}px`,
      }),
    }),
  };
}
