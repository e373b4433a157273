/** What is compared, as the address states it: `models=a,b@2&seed=3&count=16`. */
import type { Model } from "../../api/types";
import { newSeed } from "../draw/request";

export const MAX_COLUMNS = 4;
export const COUNT = 16;
export const MAX_COUNT = 100;

export interface Comparison {
  /** Models, or versions as `NAME@VERSION`. */
  refs: readonly string[];
  seed: number;
  count: number;
  blind: boolean;
}

/** Returns the comparison of the address. Without models it is of the first two that make pictures of the same size. */
export function comparisonOf(params: ReadonlyMap<string, string>, models: readonly Model[]): Comparison {
  const known = choicesOf(models);
  const asked = (params.get("models") ?? "").split(",").filter((ref) => known.includes(ref));
  const refs = asked.length > 0 ? asked.slice(0, MAX_COLUMNS) : defaultRefs(models);
  return {
    refs,
    seed: integer(params.get("seed"), 1, 0, Number.MAX_SAFE_INTEGER),
    count: integer(params.get("count"), COUNT, 1, MAX_COUNT),
    blind: params.get("blind") === "1" && refs.length >= 2,
  };
}

/** Returns everything that can be compared: each model, and its single versions if there are several. */
export function choicesOf(models: readonly Model[]): string[] {
  return models.flatMap(({ name, versions }) => [name, ...(versions.length > 1 ? versions.map((version) => `${name}@${version}`) : [])]);
}

function defaultRefs(models: readonly Model[]): string[] {
  const [first] = models;
  if (first === undefined) return [];
  const same = models.find(({ name, image }) => name !== first.name && image.width === first.image.width && image.height === first.image.height);
  return [first, same ?? models[1]].filter((model) => model !== undefined).map(({ name }) => name);
}

function integer(text: string | undefined, otherwise: number, least: number, most: number): number {
  const value = Number(text ?? Number.NaN);
  return Number.isSafeInteger(value) && value >= least && value <= most ? value : otherwise;
}

/** What is shown blind: with which seed, and whether the second model is A. */
export interface Round {
  seed: number;
  swapped: boolean;
}

/** Returns a round with a new seed and the models in random order. */
export function newRound(): Round {
  return { seed: newSeed(), swapped: Math.random() < 0.5 };
}
