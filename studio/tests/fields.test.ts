import { describe, expect, it } from "vitest";
import { fieldsOf, formatValue, type NumberField, parseValue, POSITIONS, positionOf, valueAt } from "../src/components/form/fields";

const SCHEMA = {
  type: "object",
  properties: {
    output: { type: "string", enum: ["means", "draws"], default: "means", description: "what is returned" },
    below: { type: ["number", "null"], minimum: 0, maximum: 1e6, default: null },
    ensemble: { type: "boolean", default: false },
    hidden: { type: "array", items: { type: "integer", minimum: 1, maximum: 4096 }, default: [512, 512] },
    steps: { type: "integer", minimum: 1, maximum: 20, default: 5 },
    note: { type: "string" },
  },
};
const [output, below, ensemble, hidden, steps, note] = fieldsOf(SCHEMA);

describe("fieldsOf", () => {
  it("gives each option its control, in the order of the schema", () => {
    expect(fieldsOf(SCHEMA).map(({ kind }) => kind)).toEqual(["choice", "number", "switch", "integers", "number", "text"]);
    expect(output).toMatchObject({ choices: ["means", "draws"], default: "means", description: "what is returned" });
    expect(below).toMatchObject({ nullable: true, integer: false, minimum: 0, maximum: 1e6, default: null });
    expect(steps).toMatchObject({ nullable: false, integer: true });
  });
  it("has no controls for a schema without properties", () => {
    expect(fieldsOf({ type: "object" })).toEqual([]);
  });
});

describe("slider", () => {
  it.each([below, steps] as NumberField[])("reaches both ends and returns to where it was: $name", (field) => {
    expect(valueAt(field, 0)).toBe(field.minimum);
    expect(valueAt(field, POSITIONS)).toBe(field.maximum);
    for (const position of [0, 100, 500, 900, POSITIONS]) {
      const value = valueAt(field, position);
      expect(valueAt(field, positionOf(field, value))).toBe(value);
    }
  });
  it("keeps values of the box that lie outside at its ends", () => {
    expect(positionOf(steps as NumberField, 100)).toBe(POSITIONS);
    expect(positionOf(steps as NumberField, -3)).toBe(0);
  });
});

describe("values in the address", () => {
  it.each([
    [output, "draws"],
    [below, 8.5],
    [ensemble, true],
    [hidden, [3, 4]],
    [note, "a word"],
  ])("come back as they were", (field, value) => {
    expect(field && parseValue(field, formatValue(field, value) ?? undefined)).toEqual(value);
  });
  it("leave out defaults, and take them for what is no value", () => {
    expect(hidden && formatValue(hidden, [512, 512])).toBeNull();
    expect(steps && parseValue(steps, "many")).toBe(5);
  });
});
