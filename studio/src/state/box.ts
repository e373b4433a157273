/** The size of an element, followed while it changes. */
import { useLayoutEffect, useState } from "preact/hooks";

export interface Box {
  width: number;
  height: number;
}

/** Returns the inner size of an element in CSS pixels; 0 × 0 before it is known. */
export function useBox(element: { current: HTMLElement | null }): Box {
  const [box, setBox] = useState<Box>({ width: 0, height: 0 });
  useLayoutEffect(() => {
    const { current } = element;
    if (current === null) return;
    const update = () => setBox((old) => (old.width === current.clientWidth && old.height === current.clientHeight ? old : { width: current.clientWidth, height: current.clientHeight }));
    const observer = new ResizeObserver(update);
    observer.observe(current);
    update();
    return () => observer.disconnect();
  }, []);
  return box;
}
