// Draw samples through the functions of @hey-api/openapi-ts; prints their number.

import { client } from "./generated/client.gen.js";
import { createSamples } from "./generated/sdk.gen.js";

client.setConfig({ baseUrl: process.env.REVERIE_URL });
const { data } = await createSamples({
  body: { model: "vae-mnist-2d", count: 2, seed: 3, options: { output: "means" } },
  headers: { Prefer: "wait=60" },
  throwOnError: true,
});
if (!("images" in data)) throw new Error("a job instead of samples");
console.log(data.images.length);
