/** The list of keyboard shortcuts, which `?` opens. */
import { useState } from "preact/hooks";
import { shortcuts, useShortcuts } from "../state/shortcuts";
import { Dialog } from "./Dialog";

const NAMES: Record<string, string> = { ArrowLeft: "←", ArrowRight: "→", Escape: "Esc", " ": "Space" };

export function ShortcutList() {
  const [open, setOpen] = useState(false);
  useShortcuts([{ key: "?", label: "This list", run: () => setOpen(true) }]);
  if (!open) return null;
  return (
    <Dialog title="Keyboard" onClose={() => setOpen(false)}>
      <dl class="shortcuts">
        {shortcuts.value.map(({ key, label }) => (
          <div key={key} class="shortcut">
            <dt>
              <kbd>{NAMES[key] ?? key.toUpperCase()}</kbd>
            </dt>
            <dd>{label}</dd>
          </div>
        ))}
      </dl>
      <div class="buttons">
        <button type="button" class="primary" onClick={() => setOpen(false)}>
          Close
        </button>
      </div>
    </Dialog>
  );
}
