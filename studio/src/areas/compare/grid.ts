/** How pictures fill the width of a column. */

interface Size {
  width: number;
  height: number;
}

const GAP = 2;
const STRIP_HEIGHT = 12;

/**
 * Returns the columns of a grid of `count` pictures, about square, and the size of each picture there. Pictures are
 * enlarged by whole factors of the screen's pixels, of which a CSS pixel has `ratio`.
 */
export function gridOf(count: number, picture: Size, width: number, ratio = 1): { columns: number; shown: Size } {
  const strip = picture.height === 1;
  let columns = strip ? 1 : Math.max(1, Math.ceil(Math.sqrt(count)));
  while (columns > 1 && columns * (picture.width + GAP) > width) columns--;
  const fits = (width / columns - GAP) / picture.width;
  const scale = fits >= 1 ? Math.floor(fits * ratio) / ratio : Math.max(fits, 0.01);
  return { columns, shown: { width: picture.width * scale, height: strip ? STRIP_HEIGHT : picture.height * scale } };
}
