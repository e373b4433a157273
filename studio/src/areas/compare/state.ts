/** What the area Compare keeps while it is open: the blind round, and what was chosen in it. */
import { signal } from "@preact/signals";
import { newRound, type Round } from "./request";
import { type Vote, vote } from "./tally";

export const round = signal<Round>(newRound());
/** The choice of the round; null until it is made. The names are shown after it. */
export const choice = signal<"A" | "B" | "equal" | null>(null);
/** The versions that drew the samples, by model or version of the address. */
export const versions = signal<Readonly<Record<string, string>>>({});
/** Counts how often the same samples were asked for once more. */
export const repeated = signal(0);

/** Returns a model of the address with the version that drew its samples. */
export function exactly(ref: string): string {
  const version = versions.value[ref];
  return ref.includes("@") || version === undefined ? ref : `${ref}@${version}`;
}

/** Chooses in the present round, once. */
export function choose(first: string, second: string, chosen: "A" | "B" | "equal"): void {
  if (choice.peek() !== null) return;
  choice.value = chosen;
  const { swapped } = round.peek();
  const preferred: Vote = chosen === "equal" ? "equal" : (chosen === "A") === swapped ? "second" : "first";
  vote(exactly(first), exactly(second), preferred);
}

/** Starts the next round. */
export function nextRound(): void {
  round.value = newRound();
  choice.value = null;
}
