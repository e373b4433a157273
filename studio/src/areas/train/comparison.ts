/** What differs between trainings, and how well each went. */
import type { EpochMetrics, Training } from "../../api/types";
import { number, words } from "../../lib/format";

export interface Row {
  name: string;
  /** One text for each training. */
  values: string[];
}

/** Returns the options in which trainings differ: family, data, seed and everything in their recipes. */
export function differences(trainings: readonly Training[]): Row[] {
  const options = trainings.map(optionsOf);
  const names = [...new Set(options.flatMap((one) => [...one.keys()]))];
  return names
    .map((name) => ({ name, values: options.map((one) => one.get(name) ?? "—") }))
    .filter(({ values }) => new Set(values).size > 1);
}

function optionsOf({ family, dataset, recipe, seed }: Training): Map<string, string> {
  const options = new Map([
    ["family", family],
    ["data", dataset],
    ["seed", String(seed)],
  ]);
  for (const part of ["config", "training"]) {
    for (const [name, value] of Object.entries((recipe[part] ?? {}) as Record<string, unknown>)) {
      options.set(words(name), typeof value === "number" ? number(value) : Array.isArray(value) ? value.join(", ") : String(value));
    }
  }
  return options;
}

/** Returns the metrics of trainings: the last of each, the best validation loss with its epoch, and the time. */
export function results(runs: readonly (readonly EpochMetrics[])[]): Row[] {
  const last = runs.map((epochs) => (epochs.at(-1) ?? {}) as Record<string, unknown>);
  const names = [...new Set(last.flatMap((metrics) => Object.keys(metrics)))].filter((name) => name !== "object");
  const rows = names.map((name) => ({ name: UNITS[name] ?? words(name), values: last.map((metrics) => shown(metrics[name])) }));
  const best = runs.map(bestOf);
  if (best.some((one) => one !== null)) {
    rows.unshift({ name: "best validation loss", values: best.map((one) => (one === null ? "—" : `${number(one.loss)} (epoch ${one.epoch})`)) });
  }
  return rows;
}

const UNITS: Record<string, string> = { epoch: "epochs", images: "images seen", seconds: "time (s)" };

/** Returns the lowest validation loss of a training, and its epoch; null if it has none. */
export function bestOf(epochs: readonly EpochMetrics[]): { epoch: number; loss: number } | null {
  let best: { epoch: number; loss: number } | null = null;
  for (const { epoch, validation_loss: loss } of epochs) {
    if (typeof loss === "number" && (best === null || loss < best.loss)) best = { epoch, loss };
  }
  return best;
}

function shown(value: unknown): string {
  return typeof value === "number" ? number(value) : "—";
}
