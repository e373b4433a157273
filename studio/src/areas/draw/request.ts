/** A request for samples, as the address states it. */
import type { Model } from "../../api/types";
import type { Changes } from "../../router";
import { type Field, fieldsOf, type NumberField, parseValue, type Value } from "../../components/form/fields";

export interface SampleRequest {
  model: string;
  /** The version of the address; null means the active one. */
  version: string | null;
  seed: number;
  count: number;
  /** Those that are not the default. */
  options: Readonly<Record<string, Value>>;
}

export const MAX_SEED = Number.MAX_SAFE_INTEGER;
const FIRST_SEED = 1;

/** The control of `count`. The service has its own limit, which its error states. */
export const COUNT: NumberField = {
  kind: "number",
  name: "count",
  description: "How many pictures to draw. Number i does not depend on it.",
  minimum: 1,
  maximum: 256,
  integer: true,
  nullable: false,
  default: 64,
};

/** Returns the controls of a model's options. */
export function optionFields(model: Model): Field[] {
  return fieldsOf(model.operations.samples?.options ?? {});
}

/** Returns the request that the parameters of the address describe. */
export function requestOf(model: Model, params: ReadonlyMap<string, string>): SampleRequest {
  const options: Record<string, Value> = {};
  for (const field of optionFields(model)) {
    if (params.has(field.name)) options[field.name] = parseValue(field, params.get(field.name));
  }
  const seed = Number(params.get("seed") ?? FIRST_SEED);
  return {
    model: model.name,
    version: params.get("version") ?? null,
    seed: Number.isSafeInteger(seed) ? seed : FIRST_SEED,
    count: Number(parseValue(COUNT, params.get("count"))),
    options,
  };
}

/** Returns the JSON body of a request. `version`: the one that made the pictures, so that it makes them again. */
export function bodyOf(request: SampleRequest, version = request.version): Record<string, unknown> {
  const { model, count, seed, options } = request;
  const body = { model: version === null ? model : `${model}@${version}`, count, seed };
  return Object.keys(options).length > 0 ? { ...body, options } : body;
}

/** Returns the parameters of the address for a request. */
export function paramsOf(request: SampleRequest): Changes {
  const { model, version, seed, count, options } = request;
  const values = Object.entries(options).map(([name, value]) => [name, value === null ? null : String(value)]);
  return { model, version, seed, count, ...(Object.fromEntries(values) as Changes) };
}

/** Returns the same text for the same request. */
export function keyOf(request: SampleRequest): string {
  return JSON.stringify(bodyOf(request));
}

/** Returns a seed that is easy to read out: up to nine digits. */
export function newSeed(): number {
  return Math.floor(Math.random() * 1e9);
}
