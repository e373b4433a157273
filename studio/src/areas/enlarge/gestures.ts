/** Zoom and pan by wheel, by dragging, and by two fingers. */
import { useEffect, useRef } from "preact/hooks";
import type { Box } from "../../state/box";
import { fit, pan, type Point, spread, type Viewport, zoomAt } from "./viewport";

interface Options {
  element: { current: HTMLElement | null };
  picture: Box;
  view: Box;
  viewport: Viewport;
  onChange: (viewport: Viewport) => void;
}

/** A step of the wheel zooms by the exponential of this, for each of its pixels. */
const WHEEL = 0.002;
const KEY_ZOOM = 1.25;
const KEY_PAN = 40;
const ARROWS: Readonly<Record<string, readonly [number, number]>> = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

/** Follows the hand on an element; returns handlers for it. */
export function useGestures({ element, picture, view, viewport, onChange }: Options) {
  const pointers = useRef(new Map<number, Point>());
  const newest = useRef({ viewport, picture, view, onChange });
  newest.current = { viewport, picture, view, onChange };
  const pointOf = (event: MouseEvent): Point => {
    const bounds = element.current?.getBoundingClientRect() ?? new DOMRect();
    return { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  };
  const change = (next: Viewport) => {
    newest.current.viewport = next; // several events may come before the next rendering
    newest.current.onChange(next);
  };
  useEffect(() => {
    const { current } = element;
    if (current === null) return;
    const onWheel = (event: WheelEvent) => {
      event.preventDefault(); // the page must not scroll, and only a listener that is not passive can say so
      const { viewport: old, picture: size, view: box } = newest.current;
      change(zoomAt(old, Math.exp(-event.deltaY * WHEEL * (event.deltaMode === 1 ? 16 : 1)), pointOf(event), size, box));
    };
    current.addEventListener("wheel", onWheel, { passive: false });
    return () => current.removeEventListener("wheel", onWheel);
  }, []);
  return {
    onPointerDown: (event: PointerEvent) => {
      if (event.button !== 0) return;
      element.current?.setPointerCapture(event.pointerId);
      pointers.current.set(event.pointerId, pointOf(event));
    },
    onPointerMove: (event: PointerEvent) => {
      const old = pointers.current.get(event.pointerId);
      if (old === undefined) return;
      const place = pointOf(event);
      const other = [...pointers.current].find(([id]) => id !== event.pointerId)?.[1];
      pointers.current.set(event.pointerId, place);
      const { viewport: before, picture: size, view: box } = newest.current;
      if (other === undefined) change(pan(before, place.x - old.x, place.y - old.y, size, box));
      else change(zoomAt(before, spread(place, other) / Math.max(1, spread(old, other)), other, size, box));
    },
    onKeyDown: (event: KeyboardEvent) => {
      const { viewport: before, picture: size, view: box } = newest.current;
      const middle = { x: box.width / 2, y: box.height / 2 };
      const [dx, dy] = ARROWS[event.key] ?? [0, 0];
      if (event.key === "+" || event.key === "-") change(zoomAt(before, event.key === "+" ? KEY_ZOOM : 1 / KEY_ZOOM, middle, size, box));
      else if (event.key === "0") change(fit(size, box));
      else if (event.key in ARROWS) change(pan(before, dx * KEY_PAN, dy * KEY_PAN, size, box));
      else return;
      event.preventDefault(); // arrows would choose another picture, and digits another area
    },
    onPointerUp: (event: PointerEvent) => pointers.current.delete(event.pointerId),
    onPointerCancel: (event: PointerEvent) => pointers.current.delete(event.pointerId),
  };
}
