/** Decodes codes as fast as they change: at most one request is in flight, and the newest code waits for it. */
import { type Signal, signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { Latest } from "../../api/latest";
import { runForFile } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Problem } from "../../api/types";

/** Seed of decodings: the same code is always the same picture. */
export const SEED = 1;

interface Input {
  code: readonly number[];
  /** When the hand was there, in milliseconds as `performance.now()` counts. */
  at: number;
}

/** Name of the measurement that each shown picture makes: its age, from the hand's movement on. */
export const MEASURE = "studio-decoding";

export class Decoder {
  /** How old the last picture was when it was shown, in milliseconds. */
  readonly age: Signal<number | null> = signal(null);
  readonly problem: Signal<Problem | null> = signal(null);
  readonly #model: string;
  readonly #latest: Latest<Input>;
  readonly #canvases = new Set<HTMLCanvasElement>();
  #picture: ImageBitmap | null = null;

  constructor(model: string) {
    this.#model = model;
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
      const file = await runForFile("decodings", { model: this.#model, seed: SEED, codes: [code] }, "image/png", { signal: abort });
      const picture = await createImageBitmap(file);
      this.#picture?.close();
      this.#picture = picture;
      for (const canvas of this.#canvases) paint(canvas, picture);
      performance.measure(MEASURE, { start: at, end: performance.now() });
      performance.clearMeasures(MEASURE); // observers have it; the page does not collect them
      this.age.value = performance.now() - at;
      this.problem.value = null;
    } catch (error) {
      this.problem.value = problemOf(error);
    }
  }
}

function paint(canvas: HTMLCanvasElement, picture: ImageBitmap): void {
  if (canvas.width !== picture.width) canvas.width = picture.width;
  if (canvas.height !== picture.height) canvas.height = picture.height;
  canvas.getContext("2d")?.drawImage(picture, 0, 0);
}

/** Returns the decoder of a model, while a component is shown. `model` is a name, or NAME@VERSION. */
export function useDecoder(model: string): Decoder {
  const decoder = useMemo(() => new Decoder(model), [model]);
  useEffect(() => () => decoder.cancel(), [decoder]);
  return decoder;
}
