/** A list of integers as tags: Enter or a comma adds one, a click on its cross removes it. */
import type { IntegersField, Value } from "./fields";

interface Props {
  id: string;
  field: IntegersField;
  value: Value;
  describedBy: string;
  onChange: (value: Value) => void;
}

export function IntegersControl({ id, field, value, describedBy, onChange }: Props) {
  const numbers = Array.isArray(value) ? (value as number[]) : [];
  const add = (input: HTMLInputElement) => {
    const added = input.value.split(/[\s,]+/).filter((word) => word !== "").map(Number);
    if (added.length === 0 || !added.every(Number.isInteger)) return;
    input.value = "";
    onChange([...numbers, ...added]);
  };
  return (
    <div class="tags">
      {numbers.map((number, index) => (
        <span key={`${index}-${number}`} class="tag">
          {number}
          <button type="button" aria-label={`Remove ${number}`} onClick={() => onChange(numbers.filter((_, other) => other !== index))}>
            ×
          </button>
        </span>
      ))}
      <input
        id={id}
        class="tags-box"
        type="text"
        inputMode="numeric"
        aria-describedby={describedBy}
        placeholder={`add ${field.name}`}
        onChange={(event) => add(event.currentTarget)}
        onKeyDown={(event) => {
          if (event.key !== "Enter" && event.key !== ",") return;
          event.preventDefault();
          add(event.currentTarget);
        }}
      />
    </div>
  );
}
