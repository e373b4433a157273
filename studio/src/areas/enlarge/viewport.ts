/** Which part of a picture is seen, and how large: zoom, pan, and the divider between before and after. */
import type { Box } from "../../state/box";

export interface Point {
  x: number;
  y: number;
}

/** A picture's place in a view. */
export interface Viewport {
  /** CSS pixels for each pixel of the picture before enlarging. */
  scale: number;
  /** Where the picture's top left corner lies, in CSS pixels. */
  x: number;
  y: number;
}

/** A part of a picture and where to draw it. */
export interface Visible {
  source: Part;
  target: Part;
}

export interface Part {
  x: number;
  y: number;
  width: number;
  height: number;
}

/** CSS pixels of one pixel of the picture before enlarging, at most. */
const MAX_SCALE = 64;
/** No zoom shows a picture smaller than this part of the view. */
const SMALLEST = 0.5;

/** Returns the viewport that shows all of a picture, in the middle of the view. */
export function fit(picture: Box, view: Box): Viewport {
  const scale = Math.min(view.width / picture.width, view.height / picture.height);
  return { scale, x: (view.width - picture.width * scale) / 2, y: (view.height - picture.height * scale) / 2 };
}

/** Returns the viewport zoomed by a factor, with the picture's point under `at` unmoved. */
export function zoomAt(viewport: Viewport, factor: number, at: Point, picture: Box, view: Box): Viewport {
  const least = Math.min(fit(picture, view).scale, 1) * SMALLEST;
  const scale = Math.min(Math.max(viewport.scale * factor, least), Math.max(MAX_SCALE, least));
  const by = scale / viewport.scale;
  return within({ scale, x: at.x - (at.x - viewport.x) * by, y: at.y - (at.y - viewport.y) * by }, picture, view);
}

export function pan(viewport: Viewport, dx: number, dy: number, picture: Box, view: Box): Viewport {
  return within({ ...viewport, x: viewport.x + dx, y: viewport.y + dy }, picture, view);
}

/** Returns the viewport moved so that the picture fills the view, or lies in its middle if it is smaller. */
export function within(viewport: Viewport, picture: Box, view: Box): Viewport {
  const along = (place: number, length: number, visible: number) =>
    length <= visible ? (visible - length) / 2 : Math.min(0, Math.max(visible - length, place));
  return {
    scale: viewport.scale,
    x: along(viewport.x, picture.width * viewport.scale, view.width),
    y: along(viewport.y, picture.height * viewport.scale, view.height),
  };
}

/** Returns what a view shows of a picture, which has `density` pixels for each one before enlarging; null if nothing. */
export function visible(viewport: Viewport, picture: Box, density: number, view: Box): Visible | null {
  const left = Math.max(0, -viewport.x / viewport.scale);
  const top = Math.max(0, -viewport.y / viewport.scale);
  const right = Math.min(picture.width, (view.width - viewport.x) / viewport.scale);
  const bottom = Math.min(picture.height, (view.height - viewport.y) / viewport.scale);
  if (right <= left || bottom <= top) return null;
  const part = (factor: number, x: number, y: number): Part => ({
    x: left * factor + x,
    y: top * factor + y,
    width: (right - left) * factor,
    height: (bottom - top) * factor,
  });
  return { source: part(density, 0, 0), target: part(viewport.scale, viewport.x, viewport.y) };
}

/** Returns the divider's place, 0 to 1, of a pointer at `x` in a view. */
export function dividerAt(x: number, view: Box): number {
  return view.width === 0 ? 0.5 : Math.min(1, Math.max(0, x / view.width));
}

/** Returns the scale that two fingers make of the one they began with. */
export function spread(a: Point, b: Point): number {
  return Math.hypot(a.x - b.x, a.y - b.y);
}
