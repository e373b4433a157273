/** Draws the visible parts of pictures on a canvas. */
import type { Box } from "../../state/box";
import { type Viewport, visible } from "./viewport";

/** From this many device pixels on, a pixel is shown as a square. */
const SQUARES_FROM = 3;

/** A decoded picture: `preview` is smaller. */
export interface Bitmaps {
  whole: ImageBitmap;
  preview: ImageBitmap;
}

/** What a canvas shows. Pictures are named by their numbers. */
export interface Scene {
  /** To the left of the divider. */
  before: number;
  /** To the right of it, if there is one. */
  after: number | null;
  /** The divider's place, 0 to 1. */
  divider: number;
  /** Of the photograph before enlarging, in its pixels. */
  original: Box;
  viewport: Viewport;
  /** In CSS pixels. */
  view: Box;
  /** Device pixels for each CSS pixel. */
  ratio: number;
}

/** Draws a scene. A picture that is released already leaves its side empty. */
export function drawScene(canvas: OffscreenCanvas, scene: Scene, pictures: ReadonlyMap<number, Bitmaps>): void {
  const context = prepare(canvas, scene);
  if (context === null) return;
  const { before, after, view } = scene;
  const at = after === null ? view.width : scene.divider * view.width;
  drawPart(context, pictures.get(before), scene, 0, at);
  if (after !== null) drawPart(context, pictures.get(after), scene, at, view.width);
}

/** Draws a picture on a context that counts CSS pixels, from `left` to `right` only. */
function drawPart(context: OffscreenCanvasRenderingContext2D, bitmaps: Bitmaps | undefined, { original, viewport, view, ratio }: Scene, left: number, right: number): void {
  if (bitmaps === undefined || right <= left) return;
  const shown = viewport.scale * ratio; // device pixels for each pixel before enlarging
  const small = bitmaps.preview.width / original.width >= shown;
  const bitmap = small ? bitmaps.preview : bitmaps.whole;
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
function prepare(canvas: OffscreenCanvas, { view, ratio }: Scene): OffscreenCanvasRenderingContext2D | null {
  const [width, height] = [Math.round(view.width * ratio), Math.round(view.height * ratio)];
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  context?.setTransform(ratio, 0, 0, ratio, 0, 0);
  context?.clearRect(0, 0, view.width, view.height);
  return context;
}
