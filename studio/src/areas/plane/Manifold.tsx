/** The manifold as background, a cursor on it, and the decoded picture beside the hand. */
import { type ReadonlySignal, useComputed, useSignal, useSignalEffect } from "@preact/signals";
import type { RefObject } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";
import { runForFile } from "../../api/operations";
import type { Model } from "../../api/types";
import { ProblemLine } from "../../components/ProblemLine";
import { useBox } from "../../state/box";
import { useResource } from "../../state/resource";
import { useObjectUrl } from "../../state/timing";
import { round } from "./codes";
import { DecodedPicture } from "./DecodedPicture";
import type { Decoder } from "./decoder";
import { probability, quantile } from "./normal";
import { beside, cellsFor, type Point } from "./place";

interface Props {
  model: Model;
  reference: string;
  code: ReadonlySignal<number[]>;
  decoder: Decoder;
  /** `at`: when the hand was there. */
  onMove: (code: number[], at: number) => void;
}

/** How much larger the picture is than those of the background. */
const ENLARGED = 5;
const EDGE = 0.002;

export function Manifold({ model, reference, code, decoder, onMove }: Props) {
  const element = useRef<HTMLDivElement>(null);
  const square = useRef<HTMLDivElement>(null);
  const bounds = useRef<DOMRect | null>(null);
  const box = useBox(element);
  const dragging = useSignal(false);
  const cells = cellsFor(Math.min(box.width, box.height), model.image.width);
  const resource = useResource<Blob | null>(`${reference} ${cells}`, (signal) =>
    cells === 0 ? Promise.resolve(null) : runForFile("manifold", { model: reference, options: { size: cells } }, "image/png", { signal }),
  );
  const { data, problem } = resource.state.value;
  const url = useObjectUrl(data);
  const side = cells * model.image.width;
  const move = (event: PointerEvent) => {
    if (bounds.current === null) return;
    const { left, top, width, height } = bounds.current;
    const share = (position: number, length: number) => Math.min(Math.max(position / length, EDGE), 1 - EDGE);
    const z = [share(event.clientX - left, width), share(event.clientY - top, height)].map((p) => round(quantile(p)));
    onMove(z, event.timeStamp);
  };
  const start = (event: PointerEvent) => {
    if (event.button !== 0) return;
    square.current?.setPointerCapture(event.pointerId);
    bounds.current = square.current?.getBoundingClientRect() ?? null; // each move would have to wait for a layout
    dragging.value = true;
    move(event);
  };
  return (
    <div class="plane-area" ref={element}>
      <ProblemLine problem={problem} onRetry={() => void resource.reload()} />
      {side > 0 && (
        <div
          ref={square}
          class={`plane-square ${dragging.value ? "plane-dragging" : ""}`}
          style={{ width: `${side}px`, height: `${side}px` }}
          onPointerDown={start}
          onPointerMove={(event) => dragging.value && move(event)}
          onPointerUp={() => (dragging.value = false)}
          onPointerCancel={() => (dragging.value = false)}
        >
          {url !== null && <img class="pixelated" src={url} width={side} height={side} alt={`The manifold of ${model.name}: pictures of ${cells} × ${cells} codes`} draggable={false} />}
          <Hand model={model} code={code} decoder={decoder} side={side} />
        </div>
      )}
    </div>
  );
}

interface HandProps extends Pick<Props, "model" | "code" | "decoder"> {
  /** Of the plane, in CSS pixels. */
  side: number;
}

/** The cursor at a code, and its picture. They are moved without rendering anything again. */
function Hand({ model, code, decoder, side }: HandProps) {
  const cursor = useRef<HTMLSpanElement>(null);
  const picture = useRef<HTMLDivElement>(null);
  const numbers = useComputed(() => code.value.map((value) => value.toFixed(2).replace("-", "−")).join("  "));
  const follow = () => {
    const place = { x: probability(code.value[0] ?? 0) * side, y: probability(code.value[1] ?? 0) * side };
    move(cursor, place);
    move(picture, beside(place, ENLARGED * model.image.width, side));
  };
  useSignalEffect(follow);
  useLayoutEffect(follow, [side]);
  return (
    <>
      <span ref={cursor} class="plane-cursor" />
      <div ref={picture} class="plane-picture">
        <DecodedPicture decoder={decoder} image={model.image} scale={ENLARGED} label="The decoded picture at the cursor" />
        <p class="plane-code">{numbers}</p>
      </div>
    </>
  );
}

function move({ current }: RefObject<HTMLElement | null>, { x, y }: Point): void {
  if (current !== null) current.style.transform = `translate(${x}px, ${y}px)`;
}
