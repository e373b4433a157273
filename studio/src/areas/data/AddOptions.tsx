/** How a file becomes a dataset: folded, because the defaults suit most. */
import { fieldError } from "../../api/problem";
import type { ChoiceField, Field, NumberField, TextField, Value } from "../../components/form/fields";
import { FieldControl } from "../../components/form/FieldControl";
import { LoadButton } from "../../components/paint/LoadButton";
import { bytes } from "../../lib/format";
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
  const withLabels = source.value === "Files";
  const failed = [...shown.map(({ name }) => name), ...(withLabels ? ["labels"] : [])].some((name) => fieldError(problem.value, name) !== null);
  return (
    <details open={failed}>
      <summary>Options{withLabels && labels.value !== null && `, with the labels of ${labels.value.name}`}</summary>
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
        {withLabels && <LabelsChoice />}
      </div>
    </details>
  );
}

/** The file with the labels: which one is sent, and the choice of another one, or of none. */
function LabelsChoice() {
  const file = labels.value;
  const busy = step.value !== null;
  const error = fieldError(problem.value, "labels");
  return (
    <div class="field" role="group" aria-label="labels of an IDX file">
      <span class="field-name">labels of an IDX file</span>
      <p class="muted">{file === null ? "none" : `${file.name}, ${bytes(file.size)}`}</p>
      <div class="buttons">
        <LoadButton label="Choose labels" accept="" disabled={busy} onFile={(chosen) => (labels.value = chosen)} />
        {file !== null && (
          <button type="button" disabled={busy} aria-label="Remove the labels" onClick={() => (labels.value = null)}>
            Remove
          </button>
        )}
      </div>
      <p class="field-error" role={error === null ? undefined : "alert"}>
        {error}
      </p>
    </div>
  );
}
