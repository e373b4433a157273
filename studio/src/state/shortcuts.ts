/** Keyboard shortcuts: single keys, which count wherever nothing is being typed. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

export interface Shortcut {
  /** `KeyboardEvent.key`; letters in lower case. */
  key: string;
  label: string;
  run: () => void;
}

/** The shortcuts that count now; later ones take precedence. */
export const shortcuts = signal<readonly Shortcut[]>([]);

/** Uses shortcuts while a component is shown. */
export function useShortcuts(added: readonly Shortcut[]): void {
  useEffect(() => {
    shortcuts.value = [...shortcuts.peek(), ...added];
    return () => {
      shortcuts.value = shortcuts.peek().filter((shortcut) => !added.includes(shortcut));
    };
  });
}

/** Listens to the keyboard. */
export function startShortcuts(): void {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.key !== "Escape" && takesKeys(event.target, event.key)) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const shortcut = shortcuts.peek().findLast(({ key }) => key === name);
    if (shortcut === undefined) return;
    event.preventDefault();
    shortcut.run();
  });
}

/** Whether a key means something to the element that has the focus. */
function takesKeys(target: EventTarget | null, key: string): boolean {
  if (!(target instanceof HTMLElement)) return false;
  if (target.closest("dialog") !== null || target.isContentEditable) return true;
  if (target instanceof HTMLInputElement && target.type === "range") return key.startsWith("Arrow");
  if (key === " ") return /^(BUTTON|INPUT|SELECT|TEXTAREA|A|SUMMARY)$/.test(target.tagName);
  return /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) && (target as HTMLInputElement).type !== "checkbox";
}
