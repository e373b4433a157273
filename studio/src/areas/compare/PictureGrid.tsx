/** Pictures in a square, as large as their place allows; small ones are enlarged by whole factors. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import type { ImageSize } from "../../api/types";
import { pngUrl } from "../../lib/files";
import { gridOf } from "./grid";

interface Props {
  /** PNGs as base64. */
  images: readonly string[];
  picture: Pick<ImageSize, "width" | "height">;
  label: string;
}

/** Height of what stands above and below the pictures, in CSS pixels. */
const AROUND = 200;

export function PictureGrid({ images, picture, label }: Props) {
  const element = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const { current } = element;
    if (current === null) return;
    const observer = new ResizeObserver(() => setWidth(current.clientWidth));
    observer.observe(current);
    setWidth(current.clientWidth);
    return () => observer.disconnect();
  }, []);
  const space = { width, height: innerHeight - AROUND };
  const { columns, shown } = gridOf(images.length, picture, space, Math.max(1, Math.floor(devicePixelRatio)));
  return (
    <div class="picture-grid" ref={element} role="img" aria-label={label} style={{ gridTemplateColumns: `repeat(${columns}, ${shown.width}px)` }}>
      {width > 0 && images.map((image, index) => <img key={index} class="pixelated" src={pngUrl(image)} width={shown.width} height={shown.height} alt="" />)}
    </div>
  );
}
