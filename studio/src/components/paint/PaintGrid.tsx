/** A grid to paint on: by pointer or touch, or by arrow keys and Space. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { Layer, Painting } from "./painting";
import { paint } from "./picture";
import type { Brush, Place } from "./pixels";

interface Props {
  label: string;
  painting: Painting;
  layer?: Layer;
  brush: Brush;
  /** CSS pixels of a cell. */
  cell: number;
}

const MASK_COLOR = [255, 96, 64] as const;
const KEYS: Readonly<Record<string, readonly [number, number]>> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function PaintGrid({ label, painting, layer = "pixels", brush, cell }: Props) {
  const element = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const veil = useRef<HTMLCanvasElement>(null);
  const last = useRef<Place | null>(null);
  const cursor = useSignal<Place | null>(null);
  const { width, height } = painting.pixels.value;
  useEffect(() => {
    if (canvas.current !== null) paint(canvas.current, painting.pixels.value);
  }, [painting.pixels.value]);
  useEffect(() => {
    if (veil.current !== null) paint(veil.current, painting.mask.value, MASK_COLOR);
  }, [painting.mask.value]);
  const placeOf = (event: PointerEvent): Place => {
    const bounds = element.current?.getBoundingClientRect() ?? new DOMRect();
    return { x: ((event.clientX - bounds.left) / bounds.width) * width, y: ((event.clientY - bounds.top) / bounds.height) * height };
  };
  const start = (event: PointerEvent) => {
    if (event.button !== 0) return;
    element.current?.setPointerCapture(event.pointerId);
    painting.begin();
    last.current = placeOf(event);
    painting.stroke(layer, last.current, last.current, brush);
  };
  const move = (event: PointerEvent) => {
    if (last.current === null) return;
    const events = event.getCoalescedEvents();
    for (const place of (events.length > 0 ? events : [event]).map(placeOf)) {
      painting.stroke(layer, last.current, place, brush);
      last.current = place;
    }
  };
  const end = () => (last.current = null);
  const press = (event: KeyboardEvent) => {
    const by = KEYS[event.key];
    const old = cursor.peek() ?? { x: Math.floor(width / 2) + 0.5, y: Math.floor(height / 2) + 0.5 };
    if (by === undefined && event.key !== " ") return;
    event.preventDefault();
    if (by === undefined) {
      painting.begin();
      painting.stroke(layer, old, old, brush);
      cursor.value = old;
    } else {
      cursor.value = { x: Math.min(Math.max(old.x + by[0], 0.5), width - 0.5), y: Math.min(Math.max(old.y + by[1], 0.5), height - 0.5) };
    }
  };
  const at = cursor.value;
  return (
    <div
      ref={element}
      class="paint-grid"
      role="application"
      aria-label={`${label}. Arrow keys move the brush, Space paints.`}
      tabIndex={0}
      style={{ width: `${width * cell}px`, height: `${height * cell}px` }}
      onPointerDown={start}
      onPointerMove={move}
      onPointerUp={end}
      onPointerCancel={end}
      onKeyDown={press}
      onBlur={() => (cursor.value = null)}
    >
      <canvas ref={canvas} class="pixelated" />
      <canvas ref={veil} class="paint-veil pixelated" />
      <span class="paint-lines" style={{ backgroundSize: `${cell}px ${cell}px` }} />
      {at && <span class="paint-cursor" style={{ width: `${cell}px`, height: `${cell}px`, transform: `translate(${(at.x - 0.5) * cell}px, ${(at.y - 0.5) * cell}px)` }} />}
      <span class="hidden" aria-live="polite">
        {at && `column ${at.x + 0.5}, row ${at.y + 0.5}`}
      </span>
    </div>
  );
}
