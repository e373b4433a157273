/** What is known of a dataset, as words. */
import type { Dataset } from "../../api/types";
import { bytes, dateTime, number, words } from "../../lib/format";

export const SPLITS = ["train", "validation", "test"] as const;
export type Split = (typeof SPLITS)[number];

/** At most so many pictures are on a page; the service sends fewer of large ones. */
const PAGE = 100;
const PAGE_VALUES = 4 << 20;

/** Returns how many pictures a page of a dataset has. */
export function pageSize({ channels, height, width }: Pick<Dataset, "channels" | "height" | "width">): number {
  return Math.max(1, Math.min(PAGE, Math.floor(PAGE_VALUES / (channels * height * width))));
}

/** Returns the size of a dataset's pictures, such as `28 × 28, grey`. */
export function sizeOf({ kind, channels, height, width }: Dataset): string {
  if (kind === "vectors") return `vectors of ${width}`;
  const colour = channels === 1 ? "grey" : channels === 3 ? "colour" : `${channels} channels`;
  return `${kind === "photographs" ? "photographs in patches of " : ""}${width} × ${height}, ${colour}`;
}

/** Returns names and values of what was found in the file and how it was split. */
export function factsOf(dataset: Dataset): [string, string][] {
  const facts: [string, string | null][] = [
    ["Pictures", sizeOf(dataset)],
    ["Split", splitOf(dataset)],
    ["Labels", dataset.labels ? "one for each picture" : "none"],
    ["Duplicates", countsOf(dataset.duplicates)],
    ["Converted", countsOf(dataset.conversions)],
    ["File", [dataset.format.toUpperCase(), dataset.source, dataset.bytes && `${bytes(dataset.bytes)} on the disk`].filter(Boolean).join(", ")],
    ["Added", dateTime(dataset.created_at)],
  ];
  return facts.filter((fact): fact is [string, string] => fact[1] !== null && fact[1] !== "");
}

function splitOf({ split }: Dataset): string | null {
  if (!split) return null;
  const { rule, shares } = split as { rule?: string; shares?: Record<string, number> };
  const cut = Object.entries(shares ?? {}).map(([name, share]) => `${name} ${number(share * 100)} %`);
  return [rule, ...cut].filter(Boolean).join(", ");
}

function countsOf(counts: Record<string, number> | null | undefined): string | null {
  const found = Object.entries(counts ?? {}).filter(([, count]) => count > 0);
  return found.map(([name, count]) => `${number(count)} ${words(name)}`).join(", ") || null;
}
