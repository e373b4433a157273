// Use the service through the generated types; prints the results as JSON.

import createClient from "openapi-fetch";
import { readFileSync } from "node:fs";
import type { components, paths } from "./schema.js";

const [url, picture, dataset] = process.argv.slice(2);
if (!url || !picture || !dataset) throw new Error("usage: node client.js URL PICTURE DATASET");
const client = createClient<paths>({ baseUrl: url });
const headers = { Prefer: "wait=60" };

function only<T>(result: { data?: T; error?: unknown }): T {
  if (result.data === undefined) throw new Error(JSON.stringify(result.error));
  return result.data;
}

const samples = only(
  await client.POST("/v1/samples", {
    params: { header: headers },
    body: { model: "vae-mnist-2d", count: 2, seed: 3, options: { output: "means" } },
  }),
);
if (typeof samples === "string" || !("images" in samples)) throw new Error("a job instead of samples");

const enlarged = only(
  await client.POST("/v1/upscales", {
    params: { header: headers },
    headers: { Accept: "image/png" },
    body: { model: "enlarge", image: readFileSync(picture).toString("base64") },
    parseAs: "arrayBuffer",
  }),
);

const uploaded = only(
  await client.POST("/v1/datasets", {
    body: { name: "typescript", file: "" },
    bodySerializer: (fields) => {
      const form = new FormData();
      form.append("name", fields.name ?? "");
      form.append("file", new Blob([readFileSync(dataset)]), "digits.npz");
      return form;
    },
  }),
);
if (!("counts" in uploaded)) throw new Error("a job instead of a dataset");

const training = only(
  await client.POST("/v1/trainings", {
    body: {
      family: "vae",
      dataset: "typescript",
      name: "typescript",
      recipe: { config: { hidden: [8], latents: 2 }, training: { epochs: 1, batch_size: 16 } },
    },
  }),
);
if (!("id" in training)) throw new Error("a dry run instead of a training");

const events = only(
  await client.GET("/v1/jobs/{job_id}/events", {
    params: { path: { job_id: training.id } },
    parseAs: "text",
  }),
);
const names = new Set([...String(events).matchAll(/^event: (.*)$/gm)].map((match) => match[1]));

const job: components["schemas"]["JobResponse"] = only(
  await client.GET("/v1/jobs/{job_id}", { params: { path: { job_id: training.id } } }),
);

console.log(
  JSON.stringify({
    images: samples.images.length,
    png: Buffer.from(enlarged as ArrayBuffer).subarray(1, 4).toString(),
    counts: uploaded.counts,
    events: [...names].sort(),
    status: job.status,
  }),
);
