/** Inpaintings: their job is followed, and its previews are shown while the chain runs. */
import { type Signal, signal } from "@preact/signals";
import { Latest } from "../../api/latest";
import { type JobProgress, runForFile } from "../../api/operations";
import { problemOf } from "../../api/problem";
import { request } from "../../api/send";
import type { Problem } from "../../api/types";
import type { Value } from "../../components/form/fields";
import { Debounce } from "../../state/timing";

const REST_MS = 250;

export interface InpaintingRequest {
  model: string;
  seed: number;
  count: number;
  /** PNGs as base64. */
  images: [string];
  mask: string;
  options: Readonly<Record<string, Value>>;
}

export class Inpainter {
  /** The pictures so far: a grid in one picture, with the pictures of the model's size. */
  readonly grid: Signal<ImageBitmap | null> = signal(null);
  readonly progress: Signal<JobProgress | null> = signal(null);
  readonly problem: Signal<Problem | null> = signal(null);
  readonly #latest: Latest<InpaintingRequest>;
  readonly #rest = new Debounce(REST_MS);
  #shownPreview = 0;

  constructor() {
    this.#latest = new Latest((body, abort) => this.#run(body, abort));
  }

  /** Fills in a picture once the hand rests; what runs for an older one is cancelled. */
  submit(body: InpaintingRequest): void {
    this.#rest.call(() => {
      this.#latest.cancel();
      this.#latest.submit(body);
    });
  }

  cancel(): void {
    this.#rest.cancel();
    this.#latest.cancel();
  }

  /** Removes the pictures: there is no mask any more. */
  clear(): void {
    this.cancel();
    this.grid.value = null;
    this.problem.value = null;
  }

  async #run(body: InpaintingRequest, signal: AbortSignal): Promise<void> {
    let seen = 0;
    this.#shownPreview = 0;
    const onProgress = (job: JobProgress) => {
      this.progress.value = job;
      if (job.previews === seen) return;
      seen = job.previews;
      void this.#preview(job.id, seen, signal);
    };
    try {
      const file = await runForFile("inpaintings", { ...body }, "image/png", { signal, onProgress, prefer: "respond-async" });
      const grid = await createImageBitmap(file);
      if (signal.aborted) return;
      this.grid.value = grid;
      this.problem.value = null;
    } catch (error) {
      this.problem.value = problemOf(error);
    } finally {
      this.progress.value = null;
    }
  }

  async #preview(id: string, number: number, signal: AbortSignal): Promise<void> {
    try {
      const file = await (await request(`/v1/jobs/${id}/preview`, { signal })).blob();
      const grid = await createImageBitmap(file);
      if (signal.aborted || number < this.#shownPreview || this.progress.peek()?.id !== id) return; // the result or a newer preview is there already
      this.#shownPreview = number;
      this.grid.value = grid;
    } catch {
      // a preview that is gone is no error: the result follows
    }
  }
}
