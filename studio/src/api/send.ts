/** Sends requests: with the API key, again after a key was asked for, and again while the service is busy. */
import { askForKey, key, keyHeaders } from "./key";
import { ProblemError, readProblem, retryAfter } from "./problem";

const MAX_ATTEMPTS = 5;
const MAX_DELAY_S = 10;
/** Statuses of a service that is overloaded or starts again, and of a proxy before it. */
const UNAVAILABLE = new Set([429, 502, 503, 504]);
export const RECONNECT_S = 2;
const MAX_RECONNECT_S = 60;

/**
 * Sends a request, and returns its response, whatever its status.
 *
 * After a 401 the user is asked for a key. A 503 with `Retry-After` is sent again, and a GET that could not be sent.
 */
export function send(request: Request): Promise<Response> {
  const attempt = () => {
    const copy = request.clone();
    for (const [name, value] of Object.entries(keyHeaders())) copy.headers.set(name, value);
    return fetch(copy);
  };
  return persist(attempt, request.method, request.signal);
}

/** Options of a request whose header fields are a plain object. */
type SimpleInit = Omit<RequestInit, "headers"> & { headers?: Record<string, string> };

/** Sends a request to a path of the service, and returns its response. Throws ProblemError for an error response. */
export async function request(path: string, init: SimpleInit = {}): Promise<Response> {
  // no Request is made and copied: this is the path of what follows the hand
  const attempt = () => fetch(path, { ...init, headers: { ...init.headers, ...keyHeaders() } });
  const response = await persist(attempt, init.method ?? "GET", init.signal);
  if (!response.ok) throw new ProblemError(await readProblem(response), response);
  return response;
}

/** Attempts a request until its response is final. */
async function persist(attempt: () => Promise<Response>, method: string, signal?: AbortSignal | null): Promise<Response> {
  for (let number = 1; ; number++) {
    const used = key.value;
    const response = await attemptOnce(attempt, method, number, signal);
    if (response === null) continue;
    if (response.status === 401) {
      await askForKey((await readProblem(response)).detail, used, signal);
      number = 0;
      continue;
    }
    const delay = retryDelay(response, number);
    if (delay === null) return response;
    await sleep(delay, signal);
  }
}

async function attemptOnce(attempt: () => Promise<Response>, method: string, number: number, signal?: AbortSignal | null): Promise<Response | null> {
  try {
    return await attempt();
  } catch (error) {
    if (!(error instanceof TypeError) || method !== "GET" || number >= 3) throw error;
    await sleep(number, signal);
    return null;
  }
}

/** Returns the seconds after which to send a request again; null if its response is final. */
export function retryDelay(response: Response, attempt: number): number | null {
  const seconds = retryAfter(response);
  if (response.status !== 503 || attempt >= MAX_ATTEMPTS || seconds === null || seconds > MAX_DELAY_S) return null;
  return Math.max(seconds, 0.1);
}

/** Returns the seconds after which the service may be available again; null if the error has another cause. */
export function reconnectDelay(error: unknown): number | null {
  if (error instanceof TypeError) return RECONNECT_S; // `fetch` could not reach the service
  if (!(error instanceof ProblemError) || !UNAVAILABLE.has(error.problem.status)) return null;
  return Math.min(Math.max(error.retryAfterS ?? 0, RECONNECT_S), MAX_RECONNECT_S);
}

/** Calls `action`, again while the service is unavailable, and returns its result. `action` must be safe to repeat. */
export async function untilAvailable<T>(action: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      const delay = reconnectDelay(error);
      if (signal.aborted || delay === null) throw error;
      await sleep(delay, signal);
    }
  }
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
