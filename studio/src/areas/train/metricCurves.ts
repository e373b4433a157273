/** Metrics of epochs as curves. */
import type { EpochMetrics } from "../../api/types";
import type { Curve } from "../../components/Chart";
import { words } from "../../lib/format";

/** Metrics that count on with the epochs: no curves of interest. */
const COUNTERS = new Set(["object", "epoch", "steps", "images", "seconds"]);
export const THIN = 1;
export const HEAVY = 2.5;

/** Returns the colour of a run; each has its own. */
export function colorOf(run: number): string {
  return `var(--curve-${(run % 6) + 1})`;
}

/** Returns the losses of a training: the one of the validation split is heavier than the others. */
export function lossCurves(epochs: readonly EpochMetrics[], run = 0, prefix = ""): Curve[] {
  const names = namesOf(epochs).filter((name) => name.endsWith("loss"));
  const several = prefix === "";
  return names.map((name, index) => ({
    ...curveOf(epochs, name),
    label: `${prefix}${words(name)}`,
    color: name === "validation_loss" || !several ? colorOf(run) : colorOf(index + 1),
    width: name === "validation_loss" ? HEAVY : THIN,
  }));
}

/** Returns the other metrics. */
export function otherCurves(epochs: readonly EpochMetrics[]): Curve[] {
  const names = namesOf(epochs).filter((name) => !name.endsWith("loss") && !COUNTERS.has(name));
  return names.map((name) => ({ ...curveOf(epochs, name), label: words(name), color: colorOf(0), width: 1.5 }));
}

function namesOf(epochs: readonly EpochMetrics[]): string[] {
  return [...new Set([epochs[0], epochs.at(-1)].flatMap((metrics) => Object.keys(metrics ?? {})))];
}

function curveOf(epochs: readonly EpochMetrics[], name: string): Pick<Curve, "x" | "values"> {
  const value = (metrics: EpochMetrics) => (metrics as Record<string, unknown>)[name];
  return {
    x: epochs.map(({ epoch }) => epoch),
    values: epochs.map((metrics) => {
      const found = value(metrics);
      return typeof found === "number" ? found : null;
    }),
  };
}
