/** Grey pictures of a few pixels that are painted by hand: 0 is black, 255 white, as in MNIST. */

export interface Size {
  width: number;
  height: number;
}

export interface Pixels extends Size {
  /** Row by row. */
  values: Uint8ClampedArray<ArrayBuffer>;
}

/** A place in pixels; the middle of the first one is (0.5, 0.5). */
export interface Place {
  x: number;
  y: number;
}

export function blank({ width, height }: Size): Pixels {
  return { width, height, values: new Uint8ClampedArray(width * height) };
}

export function isBlank(pixels: Pixels): boolean {
  return pixels.values.every((value) => value === 0);
}

export function inverted(pixels: Pixels): Pixels {
  return { ...pixels, values: pixels.values.map((value) => 255 - value) };
}

export interface Brush {
  /** In pixels. */
  radius: number;
  erases: boolean;
  /** Whether pixels are painted wholly or not at all, as those of a mask. */
  hard: boolean;
}

/** Returns the picture with a stroke from one place to another; its edge is soft unless the brush is hard. */
export function stroke(pixels: Pixels, from: Place, to: Place, brush: Brush): Pixels {
  const values = pixels.values.slice();
  const reach = brush.radius + 1;
  const [left, right] = range(from.x, to.x, reach, pixels.width);
  const [top, bottom] = range(from.y, to.y, reach, pixels.height);
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const distance = distanceTo({ x: x + 0.5, y: y + 0.5 }, from, to);
      const covered = brush.hard ? Number(distance <= brush.radius) : Math.min(Math.max(brush.radius + 0.5 - distance, 0), 1);
      const index = y * pixels.width + x;
      const old = values[index] ?? 0;
      values[index] = brush.erases ? Math.min(old, 255 * (1 - covered)) : Math.max(old, 255 * covered);
    }
  }
  return { ...pixels, values };
}

function range(a: number, b: number, reach: number, limit: number): [number, number] {
  return [Math.max(0, Math.floor(Math.min(a, b) - reach)), Math.min(limit, Math.ceil(Math.max(a, b) + reach))];
}

/** Returns the distance from a place to the line between two others. */
function distanceTo(place: Place, from: Place, to: Place): number {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const square = dx * dx + dy * dy;
  const share = square === 0 ? 0 : Math.min(Math.max(((place.x - from.x) * dx + (place.y - from.y) * dy) / square, 0), 1);
  return Math.hypot(place.x - from.x - share * dx, place.y - from.y - share * dy);
}

// lines of digits on a square of side 1
const DIGITS = {
  "2": [[0.3, 0.32], [0.36, 0.22], [0.5, 0.17], [0.64, 0.23], [0.67, 0.36], [0.58, 0.52], [0.42, 0.68], [0.3, 0.82], [0.5, 0.8], [0.72, 0.8]],
  "7": [[0.28, 0.22], [0.5, 0.21], [0.72, 0.22], [0.6, 0.45], [0.5, 0.65], [0.44, 0.83]],
  "0": [[0.5, 0.18], [0.37, 0.26], [0.32, 0.45], [0.34, 0.65], [0.45, 0.8], [0.58, 0.78], [0.67, 0.62], [0.68, 0.4], [0.61, 0.24], [0.5, 0.18]],
} as const;
export type Digit = keyof typeof DIGITS;

/** Returns a digit as a hand would paint it: something to begin with. */
export function digit(name: Digit, size: Size): Pixels {
  const places = DIGITS[name].map(([x, y]) => ({ x: x * size.width, y: y * size.height }));
  const brush = { radius: Math.max(0.6, size.width / 26), erases: false, hard: false };
  return places.reduce((picture, place, index) => stroke(picture, places[index - 1] ?? place, place, brush), blank(size));
}
