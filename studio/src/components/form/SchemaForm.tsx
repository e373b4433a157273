/** The controls of a model's options. */
import { fieldError } from "../../api/problem";
import type { Problem } from "../../api/types";
import type { Field, Value } from "./fields";
import { FieldControl } from "./FieldControl";

interface Props {
  fields: readonly Field[];
  values: Readonly<Record<string, Value>>;
  /** The error of the last request; what it says about a field stands beside its control. */
  problem: Problem | null;
  onChange: (field: Field, value: Value) => void;
}

export function SchemaForm({ fields, values, problem, onChange }: Props) {
  return (
    <div class="form">
      {fields.map((field) => (
        <FieldControl
          key={field.name}
          field={field}
          value={values[field.name] ?? field.default}
          error={fieldError(problem, field.name)}
          onChange={(value) => onChange(field, value)}
        />
      ))}
    </div>
  );
}
