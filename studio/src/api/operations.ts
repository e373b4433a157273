/** Runs operations (`POST /v1/samples` …): at once, or as the job that the service makes of a long one. */
import { client, get } from "./client";
import { events } from "./events";
import { localProblem, ProblemError } from "./problem";
import { request, untilAvailable } from "./send";
import type { Job, Operation, Results } from "./types";

/** How far a job is. `previews` counts the pictures of its state that `GET /v1/jobs/ID/preview` has shown. */
export interface JobProgress {
  id: string;
  status: string;
  progress: number;
  previews: number;
}

export interface RunOptions {
  signal: AbortSignal;
  /** Called when the request has become a job, and whenever that job proceeds. */
  onProgress?: (job: JobProgress) => void;
  /** The header `Prefer`: `respond-async` makes a job at once, which has events and previews. */
  prefer?: string;
}

/** A request that takes longer than these seconds becomes a job, which shows its progress and previews. */
const SYNC_S = 2;

/** Fields of a JSON body, or a form where pictures are sent as files. */
export type OperationBody = Record<string, unknown> | FormData;

/** Runs an operation and returns its JSON result. Cancelling `signal` stops its work. */
export async function run<K extends Operation>(operation: K, body: OperationBody, options: RunOptions): Promise<Results[K]> {
  const response = await runForResponse(operation, body, "application/json", options);
  return (await response.json()) as Results[K];
}

/** Runs an operation and returns its result as a file of the media type `accept`. */
export async function runForFile(
  operation: Operation,
  body: OperationBody,
  accept: string,
  options: RunOptions,
): Promise<Blob> {
  return (await runForResponse(operation, body, accept, options)).blob();
}

/** Runs an operation and returns the response with its result, whose body has the media type `accept`. */
export async function runForResponse(operation: Operation, body: OperationBody, accept: string, options: RunOptions): Promise<Response> {
  const form = body instanceof FormData;
  const response = await request(`/v1/${operation}`, {
    method: "POST",
    headers: {
      Accept: accept,
      Prefer: options.prefer ?? `wait=${SYNC_S}`,
      ...(form ? {} : { "Content-Type": "application/json" }),
    },
    body: form ? body : JSON.stringify(body),
    signal: options.signal,
  });
  if (response.status !== 202) return response;
  const job = (await response.json()) as Job;
  await follow(job.id, options);
  return resultOf(job.id, accept, options.signal);
}

/** Returns the response with the result of a job that has succeeded. */
export function resultOf(id: string, accept: string, signal: AbortSignal): Promise<Response> {
  return untilAvailable(() => request(`/v1/jobs/${id}/result`, { headers: { Accept: accept }, signal }), signal);
}

/** Follows a job until it has succeeded; cancels it when `signal` says so. Throws ProblemError if it fails. */
export async function follow(id: string, { signal, onProgress }: RunOptions): Promise<void> {
  const state: JobProgress = { id, status: "queued", progress: 0, previews: 0 };
  onProgress?.({ ...state });
  try {
    for await (const event of events(`/v1/jobs/${id}/events`, signal)) {
      if (event.name === "status") state.status = String(event.data.status);
      if (event.name === "progress") state.progress = Number(event.data.progress);
      if (event.name === "preview") state.previews++;
      onProgress?.({ ...state });
    }
  } catch (error) {
    if (signal.aborted) void client.POST("/v1/jobs/{job_id}/cancel", { params: { path: { job_id: id } } });
    throw error;
  }
  const job = await untilAvailable(() => get(client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: id } }, signal })), signal);
  if (job.status !== "succeeded") {
    throw new ProblemError(job.problem ?? localProblem("Cancelled", `The job was ${job.status}.`));
  }
}
