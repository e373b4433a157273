/** Adds datasets: an upload or a fetch goes on while other areas are shown. */
import { signal } from "@preact/signals";
import { follow } from "../../api/operations";
import { problemOf } from "../../api/problem";
import { request } from "../../api/send";
import type { Dataset, Job, Problem } from "../../api/types";
import { upload } from "../../api/upload";
import { type NamedFile, nameFor, packed } from "../../lib/dropped";
import { bytes } from "../../lib/format";
import { address, go } from "../../router";
import { datasets } from "../../state/datasets";

export const SOURCES = ["Files", "URL", "Public set"] as const;
export type Source = (typeof SOURCES)[number];
export const PUBLIC_SETS = ["mnist", "fashion-mnist"] as const;

/** The fields of the form, as they were entered. */
export interface Fields {
  name: string;
  kind: "pictures" | "photographs";
  /** HEIGHTxWIDTH; empty: as they are. */
  resize: string;
  validation: number;
  test: number;
  url: string;
  publicSet: (typeof PUBLIC_SETS)[number];
}

export interface Step {
  text: string;
  /** 0 to 1; null if it is not known. */
  share: number | null;
}

export const source = signal<Source>("Files");
export const files = signal<readonly NamedFile[]>([]);
/** An IDX file with a label for each picture. */
export const labels = signal<File | null>(null);
export const fields = signal<Fields>({ name: "", kind: "pictures", resize: "", validation: 0.1, test: 0.1, url: "", publicSet: "mnist" });
/** What is being done; null if nothing is. */
export const step = signal<Step | null>(null);
export const problem = signal<Problem | null>(null);

let running: AbortController | null = null;

export function change(changes: Partial<Fields>): void {
  fields.value = { ...fields.value, ...changes };
}

/** Takes files, and names the dataset after them. */
export function choose(chosen: readonly NamedFile[]): void {
  files.value = chosen;
  problem.value = null;
  if (chosen.length > 0) change({ name: nameFor(chosen) });
}

export function cancel(): void {
  running?.abort();
}

function chooseNothing(): void {
  files.value = [];
  labels.value = null;
}

/** Adds the dataset of the form, and shows it. */
export async function add(): Promise<void> {
  running = new AbortController();
  const from = source.peek();
  problem.value = null;
  step.value = { text: "Preparing", share: null };
  try {
    const name = from === "Files" ? await sendFiles(running.signal) : await fetchByJob(running.signal);
    if (from === "Files") chooseNothing();
    await datasets.reload();
    if (address.peek().area === "data") go("data", { name });
  } catch (error) {
    problem.value = problemOf(error);
  } finally {
    step.value = null;
    running = null;
  }
}

async function sendFiles(signal: AbortSignal): Promise<string> {
  const { name, kind, resize, validation, test } = fields.peek();
  const chosen = files.peek();
  const labelled = labels.peek();
  const file = await packed(chosen, name || "pictures", signal, (count) => {
    step.value = { text: `Packing file ${count + 1} of ${chosen.length}`, share: count / chosen.length };
  });
  const form = new FormData();
  for (const [field, value] of Object.entries({ name, kind, resize, validation, test })) form.append(field, String(value));
  form.append("file", file);
  if (labelled !== null) form.append("labels", labelled);
  const about = await upload("/v1/datasets", form, {
    signal,
    onProgress: (sent, total) => {
      step.value =
        sent < total
          ? { text: `Sending ${bytes(sent)} of ${bytes(total)}`, share: sent / total }
          : { text: "The service reads the pictures and splits them", share: null };
    },
  });
  return (about as Dataset).name;
}

async function fetchByJob(signal: AbortSignal): Promise<string> {
  const { name, kind, resize, validation, test, url, publicSet } = fields.peek();
  const split = { validation };
  const body =
    source.peek() === "URL"
      ? { source_url: url, name, kind, test, ...split, ...(resize && { resize }) }
      : { source: publicSet, ...split, ...(name && { name }) };
  const response = await request("/v1/datasets", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (response.status !== 202) return ((await response.json()) as Dataset).name;
  const job = (await response.json()) as Job;
  await follow(job.id, { signal, onProgress: ({ status, progress }) => (step.value = { text: status === "queued" ? "Waiting for a training worker" : "The service fetches the files", share: progress || null }) });
  return name || publicSet;
}
