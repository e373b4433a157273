/** Which control an option gets, from its JSON Schema in the model's card. */

export type Value = string | number | boolean | null | readonly number[];

interface Common {
  name: string;
  description: string;
  default: Value;
}

export interface NumberField extends Common {
  kind: "number";
  minimum: number;
  maximum: number;
  integer: boolean;
  nullable: boolean;
}
export interface ChoiceField extends Common {
  kind: "choice";
  choices: readonly string[];
}
export interface SwitchField extends Common {
  kind: "switch";
}
export interface IntegersField extends Common {
  kind: "integers";
  minimum: number;
  maximum: number;
}
export interface TextField extends Common {
  kind: "text";
}
export type Field = NumberField | ChoiceField | SwitchField | IntegersField | TextField;

/** The part of JSON Schema that options use. */
export interface OptionSchema {
  type?: string | readonly string[];
  enum?: readonly unknown[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  items?: OptionSchema;
  default?: unknown;
  description?: string;
}

/** Returns the controls of an object schema, in its order. */
export function fieldsOf(schema: Record<string, unknown>): Field[] {
  const properties = (schema.properties ?? {}) as Record<string, OptionSchema>;
  return Object.entries(properties).map(([name, property]) => fieldOf(name, property));
}

function fieldOf(name: string, schema: OptionSchema): Field {
  const types = [schema.type ?? []].flat();
  const common = { name, description: schema.description ?? "", default: (schema.default ?? null) as Value };
  const [minimum, maximum] = bounds(schema);
  if (schema.enum !== undefined) return { ...common, kind: "choice", choices: schema.enum.map(String) };
  if (types.includes("boolean")) return { ...common, kind: "switch" };
  if (types.includes("integer") || types.includes("number")) {
    return { ...common, kind: "number", minimum, maximum, integer: !types.includes("number"), nullable: types.includes("null") };
  }
  if (types.includes("array") && schema.items?.type === "integer") {
    const [least, most] = bounds(schema.items);
    return { ...common, kind: "integers", minimum: least, maximum: most };
  }
  return { ...common, kind: "text" };
}

function bounds(schema: OptionSchema): [number, number] {
  return [
    schema.minimum ?? schema.exclusiveMinimum ?? Number.NEGATIVE_INFINITY,
    schema.maximum ?? schema.exclusiveMaximum ?? Number.POSITIVE_INFINITY,
  ];
}

/** The slider of a number has this many positions, unless the number has fewer values. */
export const POSITIONS = 1000;
const WIDE = 200;

/** Returns the value at a position of the slider, 0 to `POSITIONS`. Wide ranges are logarithmic. */
export function valueAt(field: NumberField, position: number): number {
  const { minimum, maximum, integer } = field;
  const share = position / POSITIONS;
  if (!isWide(field)) {
    const value = minimum + share * (maximum - minimum);
    return integer ? Math.round(value) : Number(value.toPrecision(3));
  }
  const value = minimum + Math.expm1(share * Math.log1p(maximum - minimum));
  return integer ? Math.round(Number(value.toPrecision(2))) : Number(value.toPrecision(3));
}

/** Returns the slider's position of a value. */
export function positionOf(field: NumberField, value: number): number {
  const { minimum, maximum } = field;
  const offset = Math.min(Math.max(value - minimum, 0), maximum - minimum);
  const share = isWide(field) ? Math.log1p(offset) / Math.log1p(maximum - minimum) : offset / (maximum - minimum);
  return Math.round(share * POSITIONS);
}

function isWide({ minimum, maximum }: NumberField): boolean {
  return maximum - minimum > WIDE;
}

/** Returns the value that a text in the address stands for, or the default if it stands for none. */
export function parseValue(field: Field, text: string | undefined): Value {
  if (text === undefined) return field.default;
  switch (field.kind) {
    case "number":
      return text !== "" && Number.isFinite(Number(text)) ? Number(text) : field.default;
    case "switch":
      return text === "true";
    case "integers":
      return text.split(",").filter((word) => word !== "").map(Number).filter(Number.isFinite);
    default:
      return text;
  }
}

/** Returns a value as text for the address; null if it is the default, which the address leaves out. */
export function formatValue(field: Field, value: Value): string | null {
  const same = JSON.stringify(value) === JSON.stringify(field.default);
  return same || value === null ? null : String(value);
}
