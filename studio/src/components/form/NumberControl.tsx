/** A number with a range: a slider and a box. One that may be null has a switch before them. */
import { number } from "../../lib/format";
import type { NumberField, Value } from "./fields";
import { POSITIONS, positionOf, valueAt } from "./fields";
import { NumberBox } from "./NumberBox";

interface Props {
  id: string;
  field: NumberField;
  value: Value;
  describedBy: string;
  invalid: boolean;
  onChange: (value: Value) => void;
}

export function NumberControl({ id, field, value, describedBy, invalid, onChange }: Props) {
  const { minimum, maximum, integer, nullable, name } = field;
  const bounded = Number.isFinite(minimum) && Number.isFinite(maximum);
  const off = value === null;
  const shown = typeof value === "number" ? value : null;
  return (
    <div class="number">
      {nullable && (
        <input
          type="checkbox"
          class="switch"
          aria-label={`Use ${name}`}
          checked={!off}
          onChange={(event) => onChange(event.currentTarget.checked ? start(field) : null)}
        />
      )}
      {bounded && (
        <input
          type="range"
          aria-label={name}
          aria-valuetext={shown === null ? "off" : number(shown)}
          min={0}
          max={POSITIONS}
          step={1}
          disabled={off}
          value={positionOf(field, shown ?? minimum)}
          onInput={(event) => onChange(valueAt(field, Number(event.currentTarget.value)))}
        />
      )}
      <NumberBox
        id={id}
        class="number-box"
        value={shown}
        integer={integer}
        placeholder={nullable ? "off" : ""}
        describedBy={describedBy}
        invalid={invalid}
        onChange={(entered) => onChange(entered ?? (nullable ? null : field.default))}
      />
    </div>
  );
}

/** Returns the value with which a number that was off begins. */
function start(field: NumberField): number {
  return valueAt(field, POSITIONS / 2);
}
