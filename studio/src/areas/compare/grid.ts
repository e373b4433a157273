/** How pictures fill the width of a column. */

interface Size {
  width: number;
  height: number;
}

const GAP = 2;
const STRIP_HEIGHT = 12;

interface Grid {
  columns: number;
  /** The size of each picture. */
  shown: Size;
}

/**
 * Returns the grid of `count` pictures in a space: about square, or with fewer columns if pictures are larger then and
 * all of them are still seen. Pictures are enlarged by whole factors of the screen's pixels, of which a CSS pixel has
 * `ratio`.
 */
export function gridOf(count: number, picture: Size, space: Size, ratio = 1): Grid {
  const scaleOf = (columns: number) => {
    const fits = (space.width / columns - GAP) / picture.width;
    return fits >= 1 ? Math.floor(fits * ratio) / ratio : Math.max(fits, 0.01);
  };
  if (picture.height === 1) return { columns: 1, shown: { width: picture.width * scaleOf(1), height: STRIP_HEIGHT } };
  const heightOf = (columns: number) => Math.ceil(count / columns) * (picture.height * scaleOf(columns) + GAP);
  let columns = Math.max(1, Math.ceil(Math.sqrt(count)));
  while (columns > 1 && scaleOf(columns) < 1) columns--;
  for (let fewer = columns - 1; fewer >= 1 && heightOf(fewer) <= space.height; fewer--) {
    if (scaleOf(fewer) > scaleOf(columns)) columns = fewer;
  }
  const scale = scaleOf(columns);
  return { columns, shown: { width: picture.width * scale, height: picture.height * scale } };
}
