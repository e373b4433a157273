/** The trainings of the service, and the families that can be trained. */
import { client, get } from "../../api/client";
import type { Family, Training } from "../../api/types";
import { Resource } from "../../state/resource";

/** The newest hundred trainings. */
export const trainings = new Resource<Training[]>(async (signal) => (await get(client.GET("/v1/trainings", { params: { query: { limit: 100 } }, signal }))).data);

export const families = new Resource<Family[]>(async (signal) => (await get(client.GET("/v1/families", { signal }))).data);

/** More runs than this are not overlaid. */
export const MAX_COMPARED = 6;

/** Returns the runs that the address names: `run=ID,ID`. */
export function shownRuns(params: ReadonlyMap<string, string>): string[] {
  const ids = (params.get("run") ?? "").split(",").filter((id) => id !== "");
  return [...new Set(ids)].slice(0, MAX_COMPARED);
}
