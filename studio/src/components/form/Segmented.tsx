/** A few choices side by side, one of them taken. */
import { useId } from "preact/hooks";

interface Props {
  label: string;
  choices: readonly string[];
  value: string;
  onChange: (value: string) => void;
}

export function Segmented({ label, choices, value, onChange }: Props) {
  const name = useId();
  return (
    <div class="segmented" role="radiogroup" aria-label={label}>
      {choices.map((choice) => (
        <label key={choice} class="segment">
          <input type="radio" name={name} value={choice} checked={choice === value} onChange={() => onChange(choice)} />
          <span>{choice}</span>
        </label>
      ))}
    </div>
  );
}
