/** Counts which of two models was preferred. The counts stay in this browser. */
import { signal } from "@preact/signals";

/** How often the first or the second model of a pair was preferred, and how often neither. */
export interface Tally {
  first: number;
  second: number;
  equal: number;
}
export type Vote = keyof Tally;
type Tallies = Readonly<Record<string, Tally>>;

const STORAGE_KEY = "reverie-tally";
const EMPTY: Tally = { first: 0, second: 0, equal: 0 };

/** Returns the key of a pair and whether its models stand in the other order there: A against B is B against A. */
export function pairOf(first: string, second: string): { key: string; reversed: boolean } {
  const reversed = first > second;
  return { key: (reversed ? [second, first] : [first, second]).join(" "), reversed };
}

/** Returns the tallies with one vote more. */
export function counted(tallies: Tallies, first: string, second: string, vote: Vote): Tallies {
  const { key, reversed } = pairOf(first, second);
  const tally = tallies[key] ?? EMPTY;
  const stored = turned(vote, reversed);
  return { ...tallies, [key]: { ...tally, [stored]: tally[stored] + 1 } };
}

/** Returns the tally of a pair, in its order. */
export function tallyOf(tallies: Tallies, first: string, second: string): Tally {
  const { key, reversed } = pairOf(first, second);
  const { first: a, second: b, equal } = tallies[key] ?? EMPTY;
  return reversed ? { first: b, second: a, equal } : { first: a, second: b, equal };
}

function turned(vote: Vote, reversed: boolean): Vote {
  if (vote === "equal" || !reversed) return vote;
  return vote === "first" ? "second" : "first";
}

/** Returns the probability of a result at least as uneven as this one if both were equally good: the two-sided sign test. */
export function signTest({ first, second }: Pick<Tally, "first" | "second">): number {
  const count = first + second;
  let term = 0.5 ** count; // the binomial probability of `wins` of `count`
  let tail = 0;
  for (let wins = 0; wins <= Math.min(first, second); wins++) {
    tail += term;
    term *= (count - wins) / (wins + 1);
  }
  return Math.min(1, 2 * tail);
}

export const tallies = signal<Tallies>(read());

/** Counts a vote, and keeps it in this browser. */
export function vote(first: string, second: string, preferred: Vote): void {
  store(counted(tallies.peek(), first, second, preferred));
}

/** Forgets the votes on a pair. */
export function clear(first: string, second: string): void {
  const { key } = pairOf(first, second);
  store(Object.fromEntries(Object.entries(tallies.peek()).filter(([pair]) => pair !== key)));
}

function store(changed: Tallies): void {
  tallies.value = changed;
  localStorage.setItem(STORAGE_KEY, JSON.stringify(changed));
}

function read(): Tallies {
  try {
    return (JSON.parse(localStorage.getItem(STORAGE_KEY) ?? "{}") as Tallies | null) ?? {};
  } catch {
    return {};
  }
}
