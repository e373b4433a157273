/** An encoding as rows of numbers between 0 and 1, to be shown as a strip. */
import type { Results } from "../../api/types";

type Numbers = readonly (number | null)[];

/** Returns the rows of an encoding: one of a VAE or an autoencoder, one for each layer of a BiHM, the top one first. */
export function rowsOf(encoding: Results["encodings"]): number[][] {
  const layers = encoding.layers?.map((layer) => layer[0] ?? []);
  if (layers) return layers.reverse().map((layer) => layer.map((value) => value ?? 0));
  const code: Numbers = encoding.mean?.[0] ?? encoding.code?.[0] ?? [];
  const largest = Math.max(...code.map((value) => Math.abs(value ?? 0)), Number.MIN_VALUE);
  return [code.map((value) => 0.5 + (value ?? 0) / largest / 2)];
}

/** Returns an encoding in words: its numbers if they are few, otherwise how many there are. */
export function describeEncoding(encoding: Results["encodings"]): string {
  if (encoding.layers) return `${encoding.layers.length} layers`;
  const code = encoding.mean?.[0] ?? encoding.code?.[0] ?? [];
  if (code.length > 3) return `${code.length} numbers`;
  return code.map((value) => (value ?? NaN).toFixed(2).replace("-", "−")).join(", ");
}
