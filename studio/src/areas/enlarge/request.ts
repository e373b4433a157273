/** What is to be enlarged how, as the address states it. */
import type { Model } from "../../api/types";
import { type ChoiceField, type Field, fieldsOf, parseValue, type Value } from "../../components/form/fields";

/** The option that is chosen several times, to compare its values. */
export const METHOD = "method";
/** What a model has that knows one way only. */
export const ONLY = "enlarged";

/** Returns the choice of methods; null if the model knows one way only. */
export function methodField(model: Model): ChoiceField | null {
  const field = fieldsOf(model.operations.upscales?.options ?? {}).find(({ name }) => name === METHOD);
  return field?.kind === "choice" ? field : null;
}

/** Returns all other options. */
export function otherFields(model: Model): Field[] {
  return fieldsOf(model.operations.upscales?.options ?? {}).filter(({ name }) => name !== METHOD);
}

/** Returns the methods that are chosen: those of the address, or the default one. */
export function methodsOf(model: Model, params: ReadonlyMap<string, string>): readonly string[] {
  const field = methodField(model);
  if (field === null) return [ONLY];
  const asked = params.get(METHOD)?.split(",") ?? [];
  const chosen = field.choices.filter((choice) => asked.includes(choice));
  return chosen.length > 0 ? chosen : [String(field.default)];
}

/** Returns the options of the address that are not the default. */
export function optionsOf(model: Model, params: ReadonlyMap<string, string>): Record<string, Value> {
  const named = otherFields(model).filter(({ name }) => params.has(name));
  return Object.fromEntries(named.map((field) => [field.name, parseValue(field, params.get(field.name))]));
}

/** Returns the fields of the request for one method. */
export function fieldsFor(model: string, method: string, options: Readonly<Record<string, Value>>): Record<string, Value> {
  return { model, ...options, ...(method === ONLY ? {} : { [METHOD]: method }) };
}
