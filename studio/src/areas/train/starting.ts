/** Starts trainings and dry runs. */
import { signal } from "@preact/signals";
import { follow, resultOf } from "../../api/operations";
import { problemOf } from "../../api/problem";
import { request } from "../../api/send";
import type { Estimate, Problem, Training, TrainingBody } from "../../api/types";
import { go } from "../../router";
import { trainings } from "./runs";

export interface DryRun {
  body: TrainingBody;
  estimate: Estimate;
}

/** What is under way; null if nothing is. */
export const starting = signal<"training" | "dry run" | null>(null);
export const problem = signal<Problem | null>(null);
/** The last dry run, with what it was of. */
export const dryRun = signal<DryRun | null>(null);

let running: AbortController | null = null;

export function cancel(): void {
  running?.abort();
}

/** Starts a training, and shows it. */
export async function start(body: TrainingBody): Promise<void> {
  await guarded("training", async (signal) => {
    const response = await send(body, signal);
    const training = (await response.json()) as Training;
    void trainings.reload();
    go("train", { run: training.id });
  });
}

/** Estimates what a training would take. */
export async function estimate(body: TrainingBody): Promise<void> {
  dryRun.value = null;
  await guarded("dry run", async (signal) => {
    const response = await send({ ...body, dry_run: true }, signal);
    let found = await response.json() as Estimate | Training;
    if (response.status === 202) {
      const { id } = found as Training;
      await follow(id, { signal });
      found = (await (await resultOf(id, "application/json", signal)).json()) as Estimate;
    }
    dryRun.value = { body, estimate: found as Estimate };
  });
}

async function guarded(kind: "training" | "dry run", action: (signal: AbortSignal) => Promise<void>): Promise<void> {
  running?.abort();
  const abort = new AbortController();
  running = abort;
  problem.value = null;
  starting.value = kind;
  try {
    await action(abort.signal);
  } catch (error) {
    problem.value = problemOf(error);
  }
  if (running === abort) starting.value = null;
}

function send(body: TrainingBody, signal: AbortSignal): Promise<Response> {
  return request("/v1/trainings", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
}
