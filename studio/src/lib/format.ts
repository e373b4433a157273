/** Numbers and times as text, with units. */

/** Returns a number with about `digits` significant ones, a real minus sign, and no exponent where that is short. */
export function number(value: number, digits = 4): string {
  if (!Number.isFinite(value)) return "—";
  const text = Number.isInteger(value) ? value.toLocaleString("en-US") : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−").replaceAll(",", "\u202f");
}

/** Returns a duration given in seconds, such as `9 ms`, `1.2 s`, `3 min 5 s` or `2 h 10 min`. */
export function duration(seconds: number): string {
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Returns a size, such as `1.2 MB`. */
export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(count, 1)) / 3));
  return `${number(count / 1000 ** power, 3)} ${units[power] ?? "B"}`;
}

/** Returns a date and time as the reader writes them; null if it is none. */
export function dateTime(iso: string): string | null {
  if (Number.isNaN(Date.parse(iso))) return null;
  return new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** Returns a value with its unit; what only counts or has no unit stands alone. */
export function withUnit(value: number | string, unit?: string | null): string {
  const shown = typeof value === "number" ? number(value) : value;
  return unit === undefined || unit === null || unit === "1" || unit === "count" ? shown : `${shown} ${unit}`;
}

/** Returns a field's name as words: `learning_rate` becomes `learning rate`. */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}

const FIGURE_NAMES: Record<string, string> = {
  nll: "−log p(x)",
  log_p: "log p(x)",
  log_p_star: "log p*(x)",
  log_p_tilde_star: "log p̃*(x)",
};

/** Returns the name of a figure of a card as a reader would write it. */
export function figureName(name: string): string {
  return FIGURE_NAMES[name] ?? words(name).replace(/^(psnr|vgg|auroc)\b/, (short) => short.toUpperCase());
}

/** Returns a figure with its standard error, if its detail states one, and its unit: `−85.39 ± 0.23 nats`. */
export function figureValue(value: number, unit?: string | null, detail?: string | null): string {
  const error = Number(/(?:s\.e\.|standard error) (\d[\d.]*\d)/.exec(detail ?? "")?.[1] ?? Number.NaN);
  if (!(error > 0)) return withUnit(value, unit);
  const digits = Math.max(0, 1 - Math.floor(Math.log10(error)));
  return withUnit(`${value.toFixed(digits).replace("-", "−")} ± ${error.toFixed(digits)}`, unit);
}
