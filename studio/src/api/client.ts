/** The typed client: `await get(client.GET("/v1/models"))`. Types come from the service's OpenAPI description. */
import createClient from "openapi-fetch";
import { localProblem, ProblemError } from "./problem";
import type { paths } from "./schema";
import { send } from "./send";
import type { Problem } from "./types";

export const client = createClient<paths>({ baseUrl: location.origin, fetch: send });

interface Outcome<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

/** Returns the body of a response of `client`. Throws ProblemError for an error response. */
export async function get<T>(outcome: Promise<Outcome<T>>): Promise<T> {
  const { data, error, response } = await outcome;
  if (response.ok) return data as T;
  const problem = typeof error === "object" && error !== null && "detail" in error ? (error as Problem) : null;
  throw new ProblemError(problem ?? localProblem(response.statusText, "The response has no description of the error.", response.status), response);
}
