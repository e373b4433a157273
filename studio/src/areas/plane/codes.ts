/** Codes: their length and range, codes by seed, and how the address writes them. */
import type { Model } from "../../api/types";

export interface CodeShape {
  length: number;
  /** Of the sliders; the service's range may be wider. */
  minimum: number;
  maximum: number;
  /** Places of the numbers that matter most, first. */
  active: readonly number[];
}

/** Seed of decodings: the same code is always the same picture. */
export const SEED = 1;

/** Most standard deviations that a slider covers. */
const REACH = 3.5;

/** Returns what a model's codes look like; null if it decodes none. */
export function codeShape(model: Model): CodeShape | null {
  const operation = model.operations.decodings;
  const format = operation?.codes;
  if (!operation || !format) return null;
  const options = (operation.options.properties ?? {}) as Record<string, { default?: number } | undefined>;
  const chosen = format.option ? options[format.option]?.default : undefined;
  const length = format.sizes[chosen ?? 0] ?? format.sizes[0] ?? 0;
  const listed = (model.codes?.active ?? []).map(({ index }) => index).filter((index) => index < length);
  return {
    length,
    minimum: Math.max(format.minimum, -REACH),
    maximum: Math.min(format.maximum, REACH),
    active: listed.length > 0 ? listed : Array.from({ length }, (_, index) => index),
  };
}

/**
 * Returns the fields of a request for pictures of codes. States between 0 and 1 are not drawn as 0 or 1, where the
 * model can do without: the picture follows a slider all the way.
 */
export function decodingOf(model: Model, reference: string): Record<string, unknown> {
  const properties = (model.operations.decodings?.options.properties ?? {}) as Record<string, { enum?: readonly unknown[] } | undefined>;
  const body = { model: reference, seed: SEED };
  return properties.binarization?.enum?.includes("none") ? { ...body, options: { binarization: "none" } } : body;
}

/** Returns the code that a seed stands for: a draw of the prior. Without a seed, the middle of the range. */
export function codeOf(shape: CodeShape, seed: number | null): number[] {
  const { length, minimum, maximum } = shape;
  const binary = minimum >= 0;
  if (seed === null) return Array.from({ length }, () => (minimum + maximum) / 2);
  const uniform = generator(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return Array.from({ length }, () => (binary ? Number(uniform() < 0.5) : round(Math.min(Math.max(normal(), minimum), maximum))));
}

/** Returns a code with some of its numbers changed. */
export function withChanges(code: readonly number[], changes: ReadonlyMap<number, number>): number[] {
  return code.map((value, index) => changes.get(index) ?? value);
}

/** Returns changed numbers as the address writes them: `4:1.2,47:-0.5`; null without any. */
export function formatChanges(changes: ReadonlyMap<number, number>): string | null {
  return changes.size === 0 ? null : [...changes].map(([index, value]) => `${index}:${value}`).join(",");
}

/** Returns the changed numbers of the address; what is none is left out. */
export function parseChanges(text: string | undefined, shape: CodeShape): Map<number, number> {
  const pairs = (text ?? "").split(",").map((pair) => pair.split(":").map(Number));
  const valid = pairs.filter(([index = NaN, value = NaN]) => Number.isInteger(index) && index >= 0 && index < shape.length && Number.isFinite(value));
  return new Map(valid as [number, number][]);
}

/** Returns the code in the address of the plane, such as `0.34,-1.2`; null if it is none of this length. */
export function parseCode(text: string | undefined, length: number): number[] | null {
  if (text === undefined || text === "") return null;
  const numbers = text.split(",").map(Number);
  return numbers.length === length && numbers.every(Number.isFinite) ? numbers : null;
}

/** Returns a number of a code with as many digits as a picture could show. */
export function round(value: number): number {
  return Math.round(value * 1000) / 1000;
}

/** Returns a function that draws numbers from 0 to 1, the same ones for the same seed. */
function generator(seed: number): () => number {
  let state = (seed ^ Math.floor(seed / 2 ** 32)) >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return ((mixed ^ (mixed >>> 16)) >>> 0) / 2 ** 32;
  };
}
