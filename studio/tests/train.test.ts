import { describe, expect, it } from "vitest";
import type { EpochMetrics, Family, Training } from "../src/api/types";
import { bestOf, differences, results } from "../src/areas/train/comparison";
import { logLine } from "../src/areas/train/log";
import { bodyOf, paramsOf, recipeFields } from "../src/areas/train/recipe";

const FAMILY = {
  name: "vae",
  config: {
    properties: {
      height: { type: "integer", minimum: 1, maximum: 512, default: 28 },
      latents: { type: "integer", minimum: 1, maximum: 4096, default: 50, description: "dimensions of z" },
      hidden: { type: "array", items: { type: "integer" }, default: [512, 512] },
    },
  },
  training: {
    properties: {
      epochs: { type: "integer", minimum: 1, maximum: 100_000, default: 20 },
      player_rates: { type: "array", items: { type: "number" }, default: [] },
    },
  },
  recipe: { config: {}, training: { epochs: 30 } },
  gpus: {},
} as unknown as Family;

describe("recipe", () => {
  it("has the family's own defaults, and nothing that the data decide", () => {
    expect(recipeFields(FAMILY, "config").map(({ path }) => path)).toEqual(["config.latents", "config.hidden"]);
    expect(recipeFields(FAMILY, "training")[0]?.field.default).toBe(30);
    expect(recipeFields(FAMILY, "config")[0]?.field.description).toBe("dimensions of z; 1 to 4096");
  });
  it("is sent with what the address changes", () => {
    const params = new Map(Object.entries({ "config.latents": "8", "config.hidden": "300,200", "training.player_rates": "0.1 0.2", seed: "5", count: "40", serve: "never" }));
    expect(bodyOf(FAMILY, "digits", params)).toEqual({
      family: "vae",
      dataset: "digits",
      name: "digits-vae",
      recipe: { config: { latents: 8, hidden: [300, 200] }, training: { player_rates: [0.1, 0.2] }, seed: 5 },
      serve: "never",
      evaluation: { count: 40 },
    });
  });
  it("of a training becomes the address of a variant", () => {
    const training = { family: "vae", dataset: "digits", model: "mine", seed: 0, recipe: { config: { latents: 8, hidden: [512, 512] }, training: { epochs: 5 } } };
    expect(paramsOf(training as unknown as Training, FAMILY)).toEqual({ family: "vae", data: "digits", name: "mine", "config.latents": "8", "training.epochs": "5" });
  });
});

describe("comparison", () => {
  const runs = [
    { family: "vae", dataset: "digits", seed: 0, recipe: { config: { latents: 8, hidden: [3] }, training: { epochs: 5 } } },
    { family: "vae", dataset: "digits", seed: 0, recipe: { config: { latents: 2, hidden: [3] }, training: { epochs: 5, patience: 1 } } },
  ] as unknown as Training[];
  it("lists only what differs", () => {
    expect(differences(runs)).toEqual([
      { name: "latents", values: ["8", "2"] },
      { name: "patience", values: ["—", "1"] },
    ]);
  });
  it("states the best and the last epoch", () => {
    const epochs = [
      { epoch: 1, train_loss: 4, validation_loss: 5 },
      { epoch: 2, train_loss: 3, validation_loss: 4.5 },
      { epoch: 3, train_loss: 2, validation_loss: 6 },
    ] as EpochMetrics[];
    expect(bestOf(epochs)).toEqual({ epoch: 2, loss: 4.5 });
    expect(results([epochs, []])).toEqual([
      { name: "best validation loss", values: ["4.5 (epoch 2)", "—"] },
      { name: "epochs", values: ["3", "—"] },
      { name: "train loss", values: ["2", "—"] },
      { name: "validation loss", values: ["6", "—"] },
    ]);
  });
});

describe("log", () => {
  it("has the messages, not the metrics", () => {
    const event = (name: string, data: Record<string, unknown>) => logLine({ id: undefined, name, data });
    expect(event("message", { message: "measuring" })).toBe("measuring");
    expect(event("checkpoint", { epoch: 2, step_number: 32, seconds: 1.5 })).toBe("checkpoint: epoch 2, step 32, after 1.5 s");
    expect(event("metrics", { epoch: 1 })).toBeNull();
  });
});
