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

/** The option that says of which layer the codes are, if a model has several. */
export interface Layers {
  option: string;
  /** Of the codes of each layer, from the lowest. */
  sizes: readonly number[];
}

/** Returns the layers whose codes a model decodes; null if it has one kind of codes only. */
export function layersOf(model: Model): Layers | null {
  const format = model.operations.decodings?.codes;
  return format?.option && format.sizes.length > 1 ? { option: format.option, sizes: format.sizes } : null;
}

/**
 * Returns the layer that the address names. By default it is the lowest: what a code says of a higher layer is lost
 * in the layers below, which are drawn, so that no picture would follow a slider.
 */
export function parseLayer(text: string | undefined, layers: Layers | null): number {
  const layer = Number(text);
  return layers !== null && Number.isInteger(layer) && layer >= 0 && layer < layers.sizes.length ? layer : 0;
}

/** Returns what a model's codes look like, those of one of its layers; null if it decodes none. */
export function codeShape(model: Model, layer = 0): CodeShape | null {
  const operation = model.operations.decodings;
  const format = operation?.codes;
  if (!operation || !format) return null;
  const length = format.sizes[layer] ?? 0;
  const listed = isMeasured(model, layer) ? (model.codes?.active ?? []).map(({ index }) => index).filter((index) => index < length) : [];
  return {
    length,
    minimum: Math.max(format.minimum, -REACH),
    maximum: Math.min(format.maximum, REACH),
    active: listed.length > 0 ? listed : Array.from({ length }, (_, index) => index),
  };
}

/** Returns whether the card says how active the codes of a layer are: those that are decoded by default. */
export function isMeasured(model: Model, layer: number): boolean {
  const layers = layersOf(model);
  const options = (model.operations.decodings?.options.properties ?? {}) as Record<string, { default?: number } | undefined>;
  return Boolean(model.codes) && (layers === null || options[layers.option]?.default === layer);
}

/**
 * Returns the fields of a request for pictures of the codes of a layer. States between 0 and 1 are not drawn as 0 or 1,
 * where the model can do without: the picture follows a slider all the way.
 */
export function decodingOf(model: Model, reference: string, layer = 0): Record<string, unknown> {
  const properties = (model.operations.decodings?.options.properties ?? {}) as Record<string, { enum?: readonly unknown[] } | undefined>;
  const layers = layersOf(model);
  const options = {
    ...(layers === null ? {} : { [layers.option]: layer }),
    ...(properties.binarization?.enum?.includes("none") ? { binarization: "none" } : {}),
  };
  return { model: reference, seed: SEED, ...(Object.keys(options).length === 0 ? {} : { options }) };
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
