// Draw samples through the functions that orval generates; prints their number.

import { createSamplesWithJson } from "./generated.js";

const response = await createSamplesWithJson(
  { model: "vae-mnist-2d", count: 2, seed: 3, options: { output: "means" } },
  { headers: { Prefer: "wait=60" } },
);
if (response.status !== 200) throw new Error(JSON.stringify(response.data));
console.log(response.data.images.length);
