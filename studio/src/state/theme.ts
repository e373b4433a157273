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

const systemDark = matchMedia("(prefers-color-scheme: dark)");

/** The colours that are shown now. What draws on a canvas reads it, to draw again when they change. */
export const appearance = signal(appearanceNow());

function appearanceNow(): "light" | "dark" {
  const { theme: asked } = document.documentElement.dataset;
  return asked === "dark" || (asked !== "light" && systemDark.matches) ? "dark" : "light";
}

/** Follows the attribute of the page and the setting of the system. */
export function watchAppearance(): void {
  const update = () => (appearance.value = appearanceNow());
  new MutationObserver(update).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  systemDark.addEventListener("change", update);
}

/** Takes the next of system, light and dark. */
export function nextTheme(): void {
  theme.value = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "system";
}
