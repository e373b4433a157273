/** Sends requests: with the API key, again after a key was asked for, and again while the service is busy. */
import { askForKey, key, keyHeaders } from "./key";
import { ProblemError, readProblem } from "./problem";

const MAX_ATTEMPTS = 5;
const MAX_DELAY_S = 10;

/**
 * Sends a request, and returns its response, whatever its status.
 *
 * After a 401 the user is asked for a key. A 503 with `Retry-After` is sent again, and a GET that could not be sent.
 */
export async function send(request: Request): Promise<Response> {
  for (let attempt = 1; ; attempt++) {
    const used = key.value;
    const response = await attemptOnce(request, attempt);
    if (response === null) continue;
    if (response.status === 401) {
      await askForKey((await readProblem(response)).detail, used, request.signal);
      attempt = 0;
      continue;
    }
    const delay = retryDelay(response, attempt);
    if (delay === null) return response;
    await sleep(delay, request.signal);
  }
}

/** Sends a request to a path of the service, and returns its response. Throws ProblemError for an error response. */
export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const response = await send(new Request(new URL(path, location.origin), init));
  if (!response.ok) throw new ProblemError(await readProblem(response));
  return response;
}

async function attemptOnce(request: Request, attempt: number): Promise<Response | null> {
  const copy = request.clone();
  for (const [name, value] of Object.entries(keyHeaders())) copy.headers.set(name, value);
  try {
    return await fetch(copy);
  } catch (error) {
    if (!(error instanceof TypeError) || request.method !== "GET" || attempt >= 3) throw error;
    await sleep(attempt, request.signal);
    return null;
  }
}

/** Returns the seconds after which to send a request again; null if its response is final. */
export function retryDelay(response: Response, attempt: number): number | null {
  const seconds = Number(response.headers.get("retry-after") ?? NaN);
  if (response.status !== 503 || attempt >= MAX_ATTEMPTS || Number.isNaN(seconds) || seconds > MAX_DELAY_S) return null;
  return Math.max(seconds, 0.1);
}

/** Waits; rejects with an AbortError as soon as `abort` says so. */
export function sleep(seconds: number, abort?: AbortSignal | null): Promise<void> {
  return new Promise((resolve, reject) => {
    if (abort?.aborted) {
      reject(new DOMException("cancelled", "AbortError"));
      return;
    }
    const onAbort = () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    };
    const timer = setTimeout(() => {
      abort?.removeEventListener("abort", onAbort);
      resolve();
    }, seconds * 1000);
    abort?.addEventListener("abort", onAbort, { once: true });
  });
}
