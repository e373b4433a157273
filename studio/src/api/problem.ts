/** Errors as the service describes them: `application/problem+json` (RFC 9457). */
import type { FieldError, Problem } from "./types";

/** An error response of the service, or a failure to reach it (status 0). */
export class ProblemError extends Error {
  readonly problem: Problem;
  /** The seconds of the response's `Retry-After`; null without one. */
  readonly retryAfterS: number | null;

  constructor(problem: Problem, response: Response | null = null) {
    super(problem.detail);
    this.name = "ProblemError";
    this.problem = problem;
    this.retryAfterS = response && retryAfter(response);
  }
}

/** Returns a problem that did not come from the service as one. */
export function localProblem(title: string, detail: string, status = 0): Problem {
  return { type: "about:blank", title, status, detail, request_id: "" };
}

/** Returns the seconds of the header `Retry-After`; null if there is none, or if it is a date. */
export function retryAfter(response: Response): number | null {
  const seconds = Number(response.headers.get("retry-after") ?? NaN);
  return Number.isNaN(seconds) ? null : seconds;
}

/** Returns the problem in the body of an error response; other bodies become a problem with their text. */
export async function readProblem(response: Response): Promise<Problem> {
  const text = await response.text();
  if ((response.headers.get("content-type") ?? "").includes('json')) {
    const body = parse(text);
    if (isProblem(body)) return body;
  }
  const detail = text.slice(0, 500) || "The response has no description of the error.";
  return localProblem(response.statusText || "Error", detail, response.status);
}

/** Returns what to show of anything that was thrown; null for a cancelled request, which is no error. */
export function problemOf(error: unknown): Problem | null {
  if (error instanceof ProblemError) return error.problem;
  if (isAbort(error)) return null;
  if (error instanceof TypeError && /fetch|network/i.test(error.message)) {
    return localProblem("Not reachable", "The service cannot be reached. Check that it runs; the page tries again.");
  }
  return localProblem("Error in the page", error instanceof Error ? error.message : String(error));
}

/** Whether an error means that a request was cancelled. */
export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** Returns what a problem says about a field: by its name, or `options.NAME`. */
export function fieldError(problem: Problem | null, field: string): string | null {
  const named = problem && fieldErrors(problem).find((error) => lastName(error) === field);
  return named?.detail ?? null;
}

/** Returns the errors of fields. A problem without `errors` may name one field at the start of its detail. */
function fieldErrors({ errors, detail, status }: Problem): readonly FieldError[] {
  if (errors) return errors;
  const [, field, rest] = (status === 422 ? /^([\w.]+): (.*)$/s.exec(detail) : null) ?? [];
  return field !== undefined && rest !== undefined ? [{ field, detail: rest }] : [];
}

/** Returns the sentences of a problem that belong to none of the fields which show their own errors. */
export function generalDetail(problem: Problem, shownFields: readonly string[]): string | null {
  const errors = fieldErrors(problem);
  if (errors.length === 0) return problem.detail;
  const rest = errors.filter((error) => !shownFields.includes(lastName(error)));
  return rest.length > 0 ? rest.map((error) => `${error.field}: ${error.detail}`).join("; ") : null;
}

function lastName(error: FieldError): string {
  return error.field.replace(/^(body|options|query)\./, "");
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function isProblem(body: unknown): body is Problem {
  return typeof body === "object" && body !== null && "detail" in body && "status" in body;
}
