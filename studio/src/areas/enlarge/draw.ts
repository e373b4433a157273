/** Draws the visible part of a picture on a canvas. */
import type { Box } from "../../state/box";
import type { Picture } from "./decode";
import { type Viewport, visible } from "./viewport";

/** From this many device pixels on, a pixel is shown as a square. */
const SQUARES_FROM = 3;

export interface Drawn {
  picture: Picture;
  /** Of the photograph before enlarging, in its pixels. */
  original: Box;
  viewport: Viewport;
  view: Box;
}

/** Draws a picture on a context that counts CSS pixels, from `left` to `right` only. */
export function drawPicture(context: CanvasRenderingContext2D, { picture, original, viewport, view }: Drawn, left: number, right: number): void {
  if (right <= left) return;
  const ratio = devicePixelRatio;
  const shown = viewport.scale * ratio; // device pixels for each pixel before enlarging
  const small = picture.preview.width / original.width >= shown;
  const bitmap = small ? picture.preview : picture.whole;
  const part = visible(viewport, original, bitmap.width / original.width, view);
  if (part === null) return;
  context.save();
  context.beginPath();
  context.rect(left, 0, right - left, view.height);
  context.clip();
  context.imageSmoothingEnabled = (shown * original.width) / bitmap.width < SQUARES_FROM;
  const { source, target } = part;
  context.drawImage(bitmap, source.x, source.y, source.width, source.height, target.x, target.y, target.width, target.height);
  context.restore();
}

/** Gives a canvas as many pixels as the screen has, and returns its cleared context. */
export function prepare(canvas: HTMLCanvasElement, view: Box): CanvasRenderingContext2D | null {
  const ratio = devicePixelRatio;
  const [width, height] = [Math.round(view.width * ratio), Math.round(view.height * ratio)];
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  context?.setTransform(ratio, 0, 0, ratio, 0, 0);
  context?.clearRect(0, 0, view.width, view.height);
  return context;
}
