/** One option with its name, control, description and error. */
import { useId } from "preact/hooks";
import { words } from "../../lib/format";
import type { Field, Value } from "./fields";
import { IntegersControl } from "./IntegersControl";
import { NumberControl } from "./NumberControl";
import { Segmented } from "./Segmented";

export interface FieldProps {
  field: Field;
  value: Value;
  /** What the service says is wrong with it. */
  error: string | null;
  onChange: (value: Value) => void;
}

/** Choices up to this many letters in all stand side by side. */
const SEGMENTED_LETTERS = 24;

export function FieldControl({ field, value, error, onChange }: FieldProps) {
  const id = useId();
  const help = `${id}-help`;
  return (
    <div class="field" title={field.description}>
      {isSegmented(field) ? (
        <span class="field-name">{words(field.name)}</span>
      ) : (
        <label class="field-name" for={id}>
          {words(field.name)}
        </label>
      )}
      <Control id={id} help={help} field={field} value={value} error={error} onChange={onChange} />
      <p id={help} class={error === null ? "hidden" : "field-error"} role={error === null ? undefined : "alert"}>
        {error ?? field.description}
      </p>
    </div>
  );
}

/** Whether a choice is short enough to stand side by side. */
function isSegmented(field: Field): boolean {
  return field.kind === "choice" && field.choices.join("").length <= SEGMENTED_LETTERS;
}

function Control({ id, help, field, value, error, onChange }: FieldProps & { id: string; help: string }) {
  const described = { id, "aria-describedby": help, "aria-invalid": error !== null };
  switch (field.kind) {
    case "number":
      return <NumberControl id={id} field={field} value={value} describedBy={help} invalid={error !== null} onChange={onChange} />;
    case "switch":
      return (
        <input {...described} type="checkbox" class="switch" checked={value === true} onChange={(event) => onChange(event.currentTarget.checked)} />
      );
    case "integers":
      return <IntegersControl id={id} field={field} value={value} describedBy={help} onChange={onChange} />;
    case "choice":
      if (isSegmented(field)) {
        return <Segmented label={field.name} choices={field.choices} value={String(value)} onChange={onChange} />;
      }
      return (
        <select {...described} value={String(value)} onChange={(event) => onChange(event.currentTarget.value)}>
          {field.choices.map((choice) => (
            <option key={choice} value={choice}>
              {choice}
            </option>
          ))}
        </select>
      );
    case "text":
      return <input {...described} type="text" value={value === null ? "" : String(value)} onChange={(event) => onChange(event.currentTarget.value)} />;
  }
}
