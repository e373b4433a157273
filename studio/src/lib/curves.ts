/** Curves of many points, thinned out before they are drawn. */

export interface CurvePoints {
  /** Ascending. */
  x: readonly number[];
  /** One for each of `x`; null where there is none. */
  values: readonly (number | null)[];
}

/** A chart draws at most so many points, those of all its curves together. */
export const MAX_POINTS = 2000;

/**
 * Returns the indices of at most `budget` points of a curve: the first and the last, and of each of equal ranges the
 * smallest and the largest. So every peak stays, which an average or each n-th point would lose.
 */
export function thinned(values: readonly (number | null)[], budget: number): number[] {
  const known = [...values.keys()].filter((index) => Number.isFinite(values[index] ?? Number.NaN));
  if (known.length <= budget) return known;
  const inner = known.slice(1, -1);
  const ranges = Math.max(1, Math.floor((budget - 2) / 2));
  const kept = [known[0] ?? 0];
  for (let range = 0; range < ranges; range++) {
    const start = Math.floor((range * inner.length) / ranges);
    const end = Math.floor(((range + 1) * inner.length) / ranges);
    let least = inner[start] ?? 0;
    let most = least;
    for (let place = start + 1; place < end; place++) {
      const index = inner[place] ?? 0;
      if (at(values, index) < at(values, least)) least = index;
      if (at(values, index) > at(values, most)) most = index;
    }
    kept.push(Math.min(least, most));
    if (least !== most) kept.push(Math.max(least, most));
  }
  kept.push(known.at(-1) ?? 0);
  return kept;
}

/** Returns curves on one axis, thinned to `MAX_POINTS` in all: the axis, then a row for each curve with null where it has no point. */
export function joined(curves: readonly CurvePoints[]): (number | null)[][] {
  const budget = Math.floor(MAX_POINTS / Math.max(1, curves.length));
  const points = curves.map(({ x, values }) => new Map(thinned(values, budget).map((index) => [x[index] ?? 0, values[index] ?? null])));
  const axis = [...new Set(points.flatMap((curve) => [...curve.keys()]))].sort((a, b) => a - b);
  return [axis, ...points.map((curve) => axis.map((x) => curve.get(x) ?? null))];
}

/** Returns how many points rows have in all. */
export function countPoints(rows: readonly (readonly (number | null)[])[]): number {
  return rows.slice(1).reduce((sum, row) => sum + row.filter((value) => value !== null).length, 0);
}

function at(values: readonly (number | null)[], index: number): number {
  return values[index] ?? Number.NaN;
}
