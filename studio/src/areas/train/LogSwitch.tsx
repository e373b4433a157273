/** Chooses the scale of the losses; not for losses that are not positive. */
import { setParams } from "../../router";

export function LogSwitch({ checked, disabled }: { checked: boolean; disabled: boolean }) {
  return (
    <label class="log-switch" title={disabled ? "The losses are not all positive" : ""}>
      <span class="field-name">log scale</span>
      <input
        type="checkbox"
        class="switch"
        checked={checked}
        disabled={disabled}
        onChange={(event) => setParams({ scale: event.currentTarget.checked ? "log" : null }, { replace: true })}
      />
    </label>
  );
}
