/** Decodes codes as fast as they change: at most one request is in flight, and the newest code waits for it. */
import { type Signal, signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { Latest } from "../../api/latest";
import { runForResponse } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Model, Problem } from "../../api/types";
import { readPng } from "../../lib/png";
import { decodingOf } from "./codes";

interface Input {
  code: readonly number[];
  /** When the hand was there, in milliseconds as `performance.now()` counts. */
  at: number;
}

/** Name of the measurement that each shown picture makes: its age, from the hand's movement on. */
export const MEASURE = "studio-decoding";

/** Changes of `Decoder.age` come no faster than a reader can follow, in milliseconds. */
const AGE_MS = 200;

/** A picture that is ready to be drawn. */
type Drawable = ImageBitmap | ImageData;

export class Decoder {
  /** How old a picture of the last moments was when it was shown, in milliseconds. */
  readonly age: Signal<number | null> = signal(null);
  readonly problem: Signal<Problem | null> = signal(null);
  readonly #request: Readonly<Record<string, unknown>>;
  readonly #latest: Latest<Input>;
  readonly #canvases = new Set<HTMLCanvasElement>();
  #picture: Drawable | null = null;
  #ageAt = 0;

  /** `request`: its fields besides the codes. */
  constructor(request: Readonly<Record<string, unknown>>) {
    this.#request = request;
    this.#latest = new Latest((input, abort) => this.#decode(input, abort));
  }

  /** Shows the picture of a code, unless another code follows before its turn. */
  decode(code: readonly number[], at = performance.now()): void {
    this.#latest.submit({ code, at });
  }

  cancel(): void {
    this.#latest.cancel();
  }

  /** Shows all pictures on a canvas, too, until the returned function is called. */
  attach(canvas: HTMLCanvasElement): () => void {
    this.#canvases.add(canvas);
    if (this.#picture !== null) paint(canvas, this.#picture);
    return () => this.#canvases.delete(canvas);
  }

  async #decode({ code, at }: Input, abort: AbortSignal): Promise<void> {
    try {
      const response = await runForResponse("decodings", { ...this.#request, codes: [code] }, "image/png", { signal: abort });
      const picture = await drawableOf(await response.arrayBuffer());
      if (this.#picture instanceof ImageBitmap) this.#picture.close();
      this.#picture = picture;
      for (const canvas of this.#canvases) paint(canvas, picture);
      const now = performance.now();
      performance.measure(MEASURE, { start: at, end: now });
      performance.clearMeasures(MEASURE); // observers have it; the page does not collect them
      if (now - this.#ageAt > AGE_MS) {
        this.#ageAt = now;
        this.age.value = now - at;
      }
      this.problem.value = null;
    } catch (error) {
      this.problem.value = problemOf(error);
    }
  }
}

async function drawableOf(file: ArrayBuffer): Promise<Drawable> {
  return (await readPng(new Uint8Array(file))) ?? createImageBitmap(new Blob([file]));
}

function paint(canvas: HTMLCanvasElement, picture: Drawable): void {
  if (canvas.width !== picture.width) canvas.width = picture.width;
  if (canvas.height !== picture.height) canvas.height = picture.height;
  const context = canvas.getContext("2d");
  if (picture instanceof ImageData) context?.putImageData(picture, 0, 0);
  else context?.drawImage(picture, 0, 0);
}

/** Returns the decoder of a model's layer, while a component is shown. `reference` is its name, or NAME@VERSION. */
export function useDecoder(model: Model, reference: string, layer = 0): Decoder {
  const request = decodingOf(model, reference, layer);
  const decoder = useMemo(() => new Decoder(request), [JSON.stringify(request)]);
  useEffect(() => () => decoder.cancel(), [decoder]);
  return decoder;
}
