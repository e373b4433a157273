/** Painted pictures as the browser has them: canvases, PNGs, and files that are loaded. */
import { localProblem, ProblemError } from "../../api/problem";
import { blank, type Pixels, type Size } from "./pixels";

/** Draws a picture on a canvas of its size. `color`: as that colour, and as transparent where it is black. */
export function paint(canvas: HTMLCanvasElement, pixels: Pixels, color?: readonly [number, number, number]): void {
  const { width, height, values } = pixels;
  const data = new ImageData(width, height);
  values.forEach((value, index) => data.data.set(color ? [...color, value] : [value, value, value, 255], 4 * index));
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d")?.putImageData(data, 0, 0);
}

/** Returns a picture as the base64 of a PNG. */
export function pngOf(pixels: Pixels): string {
  const canvas = document.createElement("canvas");
  paint(canvas, pixels);
  return canvas.toDataURL("image/png").replace("data:image/png;base64,", "");
}

/** Returns the grey values of a file, scaled to fit into `size`. Throws ProblemError if it is no picture. */
export async function pixelsOfFile(file: Blob, size: Size): Promise<Pixels> {
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    const name = file instanceof File ? file.name : "The file";
    throw new ProblemError(localProblem("Not a picture", `${name} is not a picture that the browser can read. PNG, JPEG, WebP, GIF and BMP would work.`));
  }
  const canvas = document.createElement("canvas");
  canvas.width = size.width;
  canvas.height = size.height;
  const context = canvas.getContext("2d");
  if (context === null) return blank(size);
  const scale = Math.min(size.width / bitmap.width, size.height / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (size.width - width) / 2, (size.height - height) / 2, width, height);
  bitmap.close();
  const { data } = context.getImageData(0, 0, size.width, size.height);
  const grey = (index: number) => 0.299 * (data[index] ?? 0) + 0.587 * (data[index + 1] ?? 0) + 0.114 * (data[index + 2] ?? 0);
  const values = Uint8ClampedArray.from({ length: size.width * size.height }, (_, pixel) => (grey(4 * pixel) * (data[4 * pixel + 3] ?? 0)) / 255);
  return { ...size, values };
}
