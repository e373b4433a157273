/** A box for a number. What is being typed stays, also while results arrive; it counts with Enter or when the box is left. */
import { useState } from "preact/hooks";

interface Props {
  id: string;
  value: number | null;
  integer: boolean;
  minimum?: number;
  maximum?: number;
  placeholder?: string;
  describedBy?: string;
  invalid: boolean;
  class?: string;
  /** Called with null for an empty box. */
  onChange: (value: number | null) => void;
}

export function NumberBox({ id, value, integer, minimum, maximum, placeholder, describedBy, invalid, class: name = "", onChange }: Props) {
  const [draft, setDraft] = useState<string | null>(null);
  const commit = (text: string) => {
    setDraft(null);
    if (text === "") onChange(null);
    else if (Number.isFinite(Number(text))) onChange(Number(text));
  };
  return (
    <input
      id={id}
      type="number"
      class={name}
      aria-describedby={describedBy}
      aria-invalid={invalid}
      min={minimum}
      max={maximum}
      step={integer ? 1 : "any"}
      placeholder={placeholder}
      value={draft ?? value ?? ""}
      onInput={(event) => setDraft(event.currentTarget.value)}
      onChange={(event) => commit(event.currentTarget.value)}
    />
  );
}
