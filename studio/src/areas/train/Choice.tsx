/** One of several names, with what the service says is wrong with it. */
import { useId } from "preact/hooks";

interface Props {
  label: string;
  value: string;
  choices: readonly string[];
  error: string | null;
  onChange: (value: string) => void;
}

export function Choice({ label, value, choices, error, onChange }: Props) {
  const id = useId();
  return (
    <div class="field">
      <label class="field-name" for={id}>
        {label}
      </label>
      <select id={id} value={value} aria-invalid={error !== null} aria-describedby={`${id}-error`} onChange={(event) => onChange(event.currentTarget.value)}>
        {choices.map((choice) => (
          <option key={choice} value={choice}>
            {choice}
          </option>
        ))}
      </select>
      <p id={`${id}-error`} class="field-error" role={error === null ? undefined : "alert"}>
        {error}
      </p>
    </div>
  );
}
