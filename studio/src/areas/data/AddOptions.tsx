/** How a file becomes a dataset: folded, because the defaults suit most. */
import { fieldError } from "../../api/problem";
import type { ChoiceField, Field, NumberField, TextField, Value } from "../../components/form/fields";
import { FieldControl } from "../../components/form/FieldControl";
import { change, fields, type Fields, labels, problem, source, step } from "./additions";

const KIND: ChoiceField = {
  kind: "choice",
  name: "kind",
  description: "Photographs of any size, from 96×96, are cut into patches of 96×96 for super-resolution.",
  choices: ["pictures", "photographs"],
  default: "pictures",
};
const RESIZE: TextField = { kind: "text", name: "resize", description: "HEIGHTxWIDTH, such as 28x28; empty: all pictures have one size already.", default: "" };
const VALIDATION = share("validation");
const TEST = share("test");

function share(name: string): NumberField {
  return { kind: "number", name, description: `Share of the ${name} split, unless the file has one.`, minimum: 0, maximum: 0.5, integer: false, nullable: false, default: 0.1 };
}

export function AddOptions() {
  const shown: Field[] = source.value === "Public set" ? [VALIDATION] : [KIND, RESIZE, VALIDATION, TEST];
  const failed = shown.some(({ name }) => fieldError(problem.value, name) !== null);
  return (
    <details open={failed}>
      <summary>Options</summary>
      <div class="add-options">
        {shown.map((field) => (
          <FieldControl
            key={field.name}
            field={field}
            value={fields.value[field.name as keyof Fields]}
            error={fieldError(problem.value, field.name)}
            onChange={(value: Value) => change({ [field.name]: value })}
          />
        ))}
        {source.value === "Files" && (
          <label class="field">
            <span class="field-name">labels of an IDX file</span>
            <input type="file" disabled={step.value !== null} onChange={(event) => (labels.value = event.currentTarget.files?.[0] ?? null)} />
          </label>
        )}
      </div>
    </details>
  );
}
