/** The recipe of a training as the address states it: `config.latents=8&training.epochs=5`. */
import type { Family, Training, TrainingBody } from "../../api/types";
import { type Field, fieldsOf, formatValue, type OptionSchema, parseValue, type Value } from "../../components/form/fields";

export type Part = "config" | "training";
export const PARTS: readonly Part[] = ["config", "training"];

export interface RecipeField {
  part: Part;
  /** The name of its parameter in the address, and of its field in errors after `recipe.`. */
  path: string;
  field: Field;
  /** Of a list that is written as text: what its items are. */
  items: "number" | "string" | null;
}

/** These come from the dataset. */
const FROM_DATA = new Set(["channels", "height", "width"]);

/** Returns the controls of a family's recipe. Defaults are those of the family's own recipe. */
export function recipeFields(family: Family, part: Part): RecipeField[] {
  const defaults = (family.recipe[part] ?? {}) as Record<string, Value>;
  const properties = (family[part].properties ?? {}) as Record<string, OptionSchema>;
  return fieldsOf(family[part])
    .filter(({ name }) => part === "training" || !FROM_DATA.has(name))
    .map((field) => {
      const items = itemsOf(field, properties[field.name]);
      const value = defaults[field.name] ?? field.default;
      const shown = { ...unbounded(field), default: items === null ? value : listText(value) };
      return { part, path: `${part}.${field.name}`, field: shown, items };
    });
}

/** A box alone: ranges of recipes are so wide that a slider is of no use. The range stands in the description. */
function unbounded(field: Field): Field {
  if (field.kind !== "number") return field;
  const { minimum, maximum, description } = field;
  const range = `${minimum} to ${maximum}`;
  return { ...field, description: description ? `${description}; ${range}` : range, minimum: Number.NEGATIVE_INFINITY, maximum: Number.POSITIVE_INFINITY };
}

function itemsOf(field: Field, schema: OptionSchema | undefined): RecipeField["items"] {
  if (field.kind !== "text" || ![schema?.type].flat().includes("array")) return null;
  const type = [schema?.items?.type].flat();
  return type.includes("number") || type.includes("integer") ? "number" : "string";
}

function listText(value: Value): string {
  return Array.isArray(value) ? value.join(", ") : String(value ?? "");
}

/** Returns the value of a field in the address. */
export function valueOf({ field, path }: RecipeField, params: ReadonlyMap<string, string>): Value {
  return parseValue(field, params.get(path));
}

/** Returns the name of the model that a training makes, unless the address has one. */
export function suggestedName(family: string, dataset: string): string {
  return `${dataset}-${family}`.slice(0, 63);
}

/** Returns the body of the request for the training of the address. */
export function bodyOf(family: Family, dataset: string, params: ReadonlyMap<string, string>): TrainingBody {
  const recipe: Record<Part, Record<string, unknown>> = { config: {}, training: {} };
  for (const part of PARTS) {
    for (const one of recipeFields(family, part)) {
      if (params.has(one.path)) recipe[part][one.field.name] = sent(one, valueOf(one, params));
    }
  }
  const seed = Number(params.get("seed") ?? 0);
  const body: Record<string, unknown> = {
    family: family.name,
    dataset,
    name: params.get("name") ?? suggestedName(family.name, dataset),
    recipe: { ...recipe, ...(seed !== 0 && { seed }) },
  };
  const serve = params.get("serve");
  if (serve !== undefined) body.serve = serve;
  if (params.has("gpus")) body.gpus = Number(params.get("gpus"));
  const evaluation = Object.fromEntries(["count", "k"].filter((name) => params.has(name)).map((name) => [name, Number(params.get(name))]));
  if (Object.keys(evaluation).length > 0) body.evaluation = evaluation;
  return body as unknown as TrainingBody;
}

function sent({ items }: RecipeField, value: Value): unknown {
  if (items === null) return value;
  const words = String(value ?? "").split(/[\s,]+/).filter((word) => word !== "");
  return items === "number" ? words.map((word) => (Number.isFinite(Number(word)) ? Number(word) : word)) : words;
}

/** Returns the parameters of the address that start a training once more, as this one was. */
export function paramsOf(training: Training, family: Family | undefined): Record<string, string> {
  const params: Record<string, string> = { family: training.family, data: training.dataset, name: training.model };
  const recipe = training.recipe as Partial<Record<Part, Record<string, Value>>>;
  for (const part of family ? PARTS : []) {
    for (const { field, path, items } of family ? recipeFields(family, part) : []) {
      const value = recipe[part]?.[field.name];
      if (value === undefined) continue;
      const text = formatValue(field, items === null ? value : listText(value));
      if (text !== null) params[path] = text;
    }
  }
  if (training.seed !== 0) params.seed = String(training.seed);
  return params;
}
