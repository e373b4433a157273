/** Codes of models with layers: the states of a picture that the model draws, and which of them matter for it. */
import { run } from "../../api/operations";
import type { Model } from "../../api/types";
import { decodeBase64 } from "../../lib/files";
import { readPng } from "../../lib/png";
import { type CodeShape, codeOf, decodingOf, round, SEED, withChanges } from "./codes";

/** A code that sliders change, and the places of its numbers, those that change its picture most first. */
export interface Start {
  code: readonly number[];
  order: readonly number[];
}

/** Most numbers of one request, below the service's limit for JSON. */
const MAX_NUMBERS = 60_000;

/** The orders of this visit, by model and layer. */
const orders = new Map<string, readonly number[]>();

/** Whether a code of the model is the states of a layer, which the model finds for a picture that it draws. */
export function hasStates({ operations }: Model): boolean {
  return Boolean(operations.decodings?.codes?.option) && "samples" in operations && "encodings" in operations;
}

/**
 * Loads the states of a layer for the picture that a seed stands for, and their order. The order is that for the first
 * seed, so that the sliders keep their places when another code is chosen; it is measured once per model and layer.
 */
export async function loadStart(model: Model, reference: string, layer: number, shape: CodeShape, seed: number | null, signal: AbortSignal): Promise<Start> {
  const code = await loadStates(reference, layer, shape, seed ?? SEED, signal);
  const key = `${reference} ${layer}`;
  let order = orders.get(key);
  if (order === undefined) {
    const first = (seed ?? SEED) === SEED ? code : await loadStates(reference, layer, shape, SEED, signal);
    const effects = await measureEffects(decodingOf(model, reference, layer), first, shape, signal);
    order = orderOf(effects);
    orders.set(key, order);
  }
  return { code, order };
}

/** Returns the places of numbers, the largest first; equal ones in their order. */
export function orderOf(effects: readonly number[]): number[] {
  return effects.map((_, index) => index).sort((one, other) => (effects[other] ?? 0) - (effects[one] ?? 0));
}

async function loadStates(reference: string, layer: number, shape: CodeShape, seed: number, signal: AbortSignal): Promise<number[]> {
  const { images } = await run("samples", { model: reference, count: 1, seed }, { signal });
  const { layers } = await run("encodings", { model: reference, seed, images }, { signal });
  const states = layers?.[layer]?.[0];
  return states?.length === shape.length ? states.map((state) => round(state ?? 0)) : codeOf(shape, seed);
}

/**
 * Returns how much the picture changes with each number of a code, when it moves to the farther end of its slider. The
 * pictures that are compared have the same number in their requests, and so the same draws of the layers below.
 */
async function measureEffects(request: Record<string, unknown>, code: readonly number[], shape: CodeShape, signal: AbortSignal): Promise<number[]> {
  const rows = Math.min(code.length, Math.max(1, Math.floor(MAX_NUMBERS / code.length)));
  const unchanged = await decode({ ...request, codes: [code], count: rows }, signal);
  const middle = (shape.minimum + shape.maximum) / 2;
  const changed = code.map((value, index) => withChanges(code, new Map([[index, value < middle ? shape.maximum : shape.minimum]])));
  const effects: number[] = [];
  for (let first = 0; first < changed.length; first += rows) {
    const pictures = await decode({ ...request, codes: changed.slice(first, first + rows) }, signal);
    effects.push(...pictures.map((picture, row) => difference(picture, unchanged[row])));
  }
  return effects;
}

type Pixels = Uint8ClampedArray | undefined;

async function decode(body: Record<string, unknown>, signal: AbortSignal): Promise<Pixels[]> {
  const { images } = await run("decodings", body, { signal });
  const pictures: Pixels[] = [];
  for (const image of images) pictures.push((await readPng(decodeBase64(image)))?.data); // in turn: no task is long
  return pictures;
}

/** Returns the sum of the differences of two pictures of one size; 0 if one could not be read. */
export function difference(one: Pixels, other: Pixels): number {
  if (one === undefined || other === undefined) return 0;
  return one.reduce((sum, value, index) => sum + Math.abs(value - (other[index] ?? 0)), 0);
}
