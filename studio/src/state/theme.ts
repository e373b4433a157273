/** Dark or light: that of the system, unless one was chosen. */
import { effect, signal } from "@preact/signals";

export type Theme = "system" | "light" | "dark";
const THEMES: readonly Theme[] = ["system", "light", "dark"];
const STORAGE_KEY = "reverie-theme";

const stored = localStorage.getItem(STORAGE_KEY) as Theme | null;
export const theme = signal<Theme>(stored !== null && THEMES.includes(stored) ? stored : "system");

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  localStorage.setItem(STORAGE_KEY, theme.value);
});

/** Takes the next of system, light and dark. */
export function nextTheme(): void {
  theme.value = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "system";
}
