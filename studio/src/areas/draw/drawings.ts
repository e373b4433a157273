/** The pictures of the area Draw: the gallery grows while the page is open, the history stays. */
import { computed, signal } from "@preact/signals";
import { Latest } from "../../api/latest";
import { type JobProgress, run } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { ImageSize, Model, Problem, Results } from "../../api/types";
import { currentModel } from "../../state/service";
import { forget, recall, remember } from "../../state/history";
import { bodyOf, keyOf, type SampleRequest } from "./request";

/** The result of one request. */
export interface Drawing {
  id: number;
  request: SampleRequest;
  /** The version that made it. */
  version: string;
  image: ImageSize;
  /** PNGs as base64. */
  images: readonly string[];
  energies: readonly (number | null)[] | null;
  accepted: readonly boolean[] | null;
  seconds: number;
  at: number;
  /** Whether the same request has made the same bytes before. */
  repeated: boolean;
}

export interface Selection {
  drawing: Drawing;
  index: number;
}

/** Newest first. */
export const drawings = signal<readonly Drawing[]>([]);
export const selection = signal<Selection | null>(null);
export const problem = signal<Problem | null>(null);
export const busy = signal(false);
/** Of the request that has become a job. */
export const progress = signal<JobProgress | null>(null);

/** The drawings that stand in one gallery: those of the model that is chosen. */
export const shown = computed(() => drawings.value.filter(({ request }) => request.model === currentModel.value?.name));

const HISTORY_DELAY_MS = 800;
let lastId = 0;
let historyTimer: ReturnType<typeof setTimeout> | undefined;
let requested = "";

const latest = new Latest<{ model: Model; request: SampleRequest }>(async ({ model, request }, abort) => {
  busy.value = true;
  const started = performance.now();
  try {
    const result = await run("samples", bodyOf(request), { signal: abort, onProgress: (job) => (progress.value = job) });
    place(drawingOf(model, request, result, (performance.now() - started) / 1000));
    problem.value = null;
  } catch (error) {
    problem.value = problemOf(error);
  } finally {
    busy.value = latest.waits;
    progress.value = null;
  }
});

/** Draws what a request asks for, unless it was asked for last; `again`: in any case. */
export function draw(model: Model, request: SampleRequest, { again = false } = {}): void {
  const key = keyOf(request);
  if (key === requested && !again) return;
  requested = key;
  latest.submit({ model, request });
}

export function cancel(): void {
  latest.cancel();
}

/** Shows a drawing of the history again. The address changes to its request, which is then not sent. */
export function reopen(drawing: Drawing): void {
  requested = keyOf(drawing.request);
  problem.value = null;
  place({ ...drawing, id: ++lastId });
}

export async function history(): Promise<Drawing[]> {
  return (await recall("draw", 60)) as Drawing[];
}

export async function clearHistory(): Promise<void> {
  clearTimeout(historyTimer); // what is not stored yet is not to come back
  await forget("draw");
}

/** Puts a drawing first. It replaces the first one if only options differ: the picture follows the slider. */
function place(made: Drawing): void {
  const [first, ...rest] = drawings.peek();
  const replaces = first !== undefined && sameSeed(first.request, made.request);
  const drawing = replaces ? { ...made, repeated: isRepeated(first, made) } : made;
  drawings.value = [drawing, ...(replaces ? rest : drawings.peek())];
  const selected = selection.peek();
  if (replaces && selected?.drawing === first) {
    selection.value = selected.index < drawing.images.length ? { drawing, index: selected.index } : null;
  }
  clearTimeout(historyTimer);
  historyTimer = setTimeout(() => void store(drawing), HISTORY_DELAY_MS);
}

async function store(drawing: Drawing): Promise<void> {
  const bytes = drawing.images.reduce((sum, image) => sum + image.length, 500);
  await remember({ id: `draw ${keyOf(drawing.request)}`, area: "draw", at: Date.now(), bytes }, drawing);
}

function sameSeed(a: SampleRequest, b: SampleRequest): boolean {
  return a.model === b.model && a.version === b.version && a.seed === b.seed;
}

function isRepeated(before: Drawing, made: Drawing): boolean {
  const same = made.images.every((image, index) => image === before.images[index]);
  return keyOf(before.request) === keyOf(made.request) && same;
}

function drawingOf(model: Model, request: SampleRequest, result: Results["samples"], seconds: number): Drawing {
  return {
    id: ++lastId,
    request,
    version: result.version,
    image: model.image,
    images: result.images,
    energies: result.energies ?? null,
    accepted: result.accepted ?? null,
    seconds,
    at: Date.now(),
    repeated: false,
  };
}
