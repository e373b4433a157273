/** The line between before and after, moved by hand or by arrow keys. */
import { useRef } from "preact/hooks";
import type { Box } from "../../state/box";
import { dividerAt } from "./viewport";

interface Props {
  /** 0 to 1. */
  share: number;
  view: Box;
  onChange: (share: number) => void;
}

const STEPS: Readonly<Record<string, number>> = { ArrowLeft: -0.02, ArrowRight: 0.02 };

export function Divider({ share, view, onChange }: Props) {
  const dragging = useRef(false);
  const move = (event: PointerEvent) => {
    const bounds = (event.currentTarget as HTMLElement).parentElement?.getBoundingClientRect();
    if (bounds) onChange(dividerAt(event.clientX - bounds.left, view));
  };
  const start = (event: PointerEvent) => {
    event.stopPropagation(); // the picture stays where it is
    (event.currentTarget as HTMLElement).setPointerCapture(event.pointerId);
    dragging.current = true;
  };
  const press = (event: KeyboardEvent) => {
    const by = STEPS[event.key];
    if (by === undefined) return;
    event.preventDefault();
    event.stopPropagation(); // arrows would move the picture, too
    onChange(Math.min(1, Math.max(0, share + by)));
  };
  return (
    <div
      class="divider"
      role="slider"
      tabIndex={0}
      aria-label="Divider between before and after"
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={Math.round(share * 100)}
      aria-valuetext={`${Math.round(share * 100)} % before`}
      style={{ transform: `translateX(${share * view.width}px)` }}
      onPointerDown={start}
      onPointerMove={(event) => dragging.current && move(event)}
      onPointerUp={() => (dragging.current = false)}
      onPointerCancel={() => (dragging.current = false)}
      onKeyDown={press}
    >
      <span class="divider-handle" aria-hidden="true">
        ‹ ›
      </span>
    </div>
  );
}
