/** The datasets that may be used, by name. */
import { client, get } from "../api/client";
import type { Dataset } from "../api/types";
import { Resource } from "./resource";

export const datasets = new Resource<Dataset[]>(async (signal) => {
  const all: Dataset[] = [];
  for (let after = ""; ; ) {
    const page = await get(client.GET("/v1/datasets", { params: { query: { limit: 100, ...(after && { after }) } }, signal }));
    all.push(...page.data);
    if (!page.has_more || !page.last_id) return all;
    after = page.last_id;
  }
});
