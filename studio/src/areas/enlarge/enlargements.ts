/** The photograph, and what each method makes of it: one after the other, each a job with progress by tile. */
import { signal } from "@preact/signals";
import { type JobProgress, runForFile } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Problem } from "../../api/types";
import type { Value } from "../../components/form/fields";
import { Newest } from "../../lib/newest";
import { decodePicture, type Picture, release } from "./pictures";
import { fieldsFor } from "./request";

export interface Photograph {
  file: Blob;
  name: string;
  picture: Picture;
}

export interface Enlargement {
  method: string;
  state: "waiting" | "running" | "done" | "failed" | "cancelled";
  /** 0 to 1; null while the job waits. */
  progress: number | null;
  job: string | null;
  seconds: number;
  file: Blob | null;
  picture: Picture | null;
  problem: Problem | null;
}

export const photograph = signal<Photograph | null>(null);
export const opening = signal(false);
/** Of a file that could not be opened. */
export const problem = signal<Problem | null>(null);
export const enlargements = signal<ReadonlyMap<string, Enlargement>>(new Map());

const NEW: Omit<Enlargement, "method"> = { state: "waiting", progress: null, job: null, seconds: 0, file: null, picture: null, problem: null };

interface Wanted {
  model: string;
  methods: readonly string[];
  options: Readonly<Record<string, Value>>;
}

let running: AbortController | null = null;
/** The photograph and options that the enlargements are of, and the methods that were asked for last. */
let enlarged = "";
let asked = "";
let opened = 0;
const opens = new Newest();

/** Shows a picture file in place of the photograph, unless a newer one is opened meanwhile. */
export async function open(source: Blob | Promise<Blob>, name: string): Promise<void> {
  const isNewest = opens.start();
  opening.value = true;
  problem.value = null;
  try {
    const file = await source;
    const picture = await decodePicture(file, name);
    if (!isNewest()) {
      release(picture);
      return;
    }
    removePhotograph();
    opened++;
    photograph.value = { file, name, picture };
  } catch (error) {
    if (isNewest()) problem.value = problemOf(error);
  }
  if (isNewest()) opening.value = false;
}

/** Enlarges the photograph by the methods that have no result yet; other options begin anew. */
export function enlarge(wanted: Wanted, { again = false } = {}): void {
  const photo = photograph.peek();
  const key = JSON.stringify([opened, wanted.model, wanted.options]);
  const methods = wanted.methods.join();
  if (photo === null || (key === enlarged && methods === asked && !again)) return;
  cancel();
  if (key !== enlarged || again) forgetResults();
  enlarged = key;
  asked = methods;
  const missing = wanted.methods.filter((method) => enlargements.peek().get(method)?.state !== "done");
  enlargements.value = new Map([...enlargements.peek()].filter(([, { state }]) => state === "done"));
  for (const method of missing) change(method, { ...NEW });
  void runAll(photo, wanted, missing);
}

/** Stops what runs and what waits. */
export function cancel(): void {
  running?.abort();
  running = null;
}

/** Removes the photograph and its enlargements. A picture that is being opened is not shown, either. */
export function clear(): void {
  opens.start();
  opening.value = false;
  removePhotograph();
}

function removePhotograph(): void {
  cancel();
  forgetResults();
  const photo = photograph.peek();
  photograph.value = null;
  if (photo !== null) release(photo.picture);
}

async function runAll(photo: Photograph, wanted: Wanted, methods: readonly string[]): Promise<void> {
  const abort = new AbortController();
  running = abort;
  for (const method of methods) {
    if (abort.signal.aborted) change(method, { state: "cancelled" }, abort);
    else await runOne(photo, wanted, method, abort);
  }
  if (running === abort) running = null;
}

async function runOne({ file, name }: Photograph, { model, options }: Wanted, method: string, abort: AbortController): Promise<void> {
  const started = performance.now();
  change(method, { state: "running" }, abort);
  const form = new FormData();
  form.append("image", file, name);
  for (const [field, value] of Object.entries(fieldsFor(model, method, options))) form.append(field, String(value));
  const onProgress = ({ id, status, progress }: JobProgress) => change(method, { job: id, progress: status === "queued" ? null : progress }, abort);
  try {
    const result = await runForFile("upscales", form, "image/png", { signal: abort.signal, onProgress, prefer: "respond-async" });
    const seconds = (performance.now() - started) / 1000;
    const picture = await decodePicture(result, name);
    if (abort.signal.aborted) release(picture);
    else change(method, { state: "done", file: result, picture, seconds, progress: 1 }, abort);
  } catch (error) {
    const found = problemOf(error);
    change(method, found === null ? { state: "cancelled" } : { state: "failed", problem: found }, abort);
  }
}

/** Changes what is known of a method, unless its results were replaced meanwhile. */
function change(method: string, changes: Partial<Enlargement>, abort: AbortController | null = null): void {
  if (abort !== null && running !== abort && running !== null) return;
  const old = enlargements.peek().get(method);
  if (old === undefined && abort !== null) return;
  enlargements.value = new Map(enlargements.peek()).set(method, { ...NEW, ...old, method, ...changes });
}

function forgetResults(): void {
  for (const { picture } of enlargements.peek().values()) if (picture !== null) release(picture);
  enlargements.value = new Map();
}
