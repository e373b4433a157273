import { describe, expect, it } from "vitest";
import { countPoints, joined, MAX_POINTS, thinned } from "../src/lib/curves";

const EPOCHS = Array.from({ length: 10_000 }, (_, index) => index + 1);

describe("thinned", () => {
  it("keeps short curves as they are, without gaps", () => {
    expect(thinned([3, null, 1, Number.NaN, 2], 10)).toEqual([0, 2, 4]);
    expect(thinned([], 10)).toEqual([]);
  });
  it("keeps the ends and every peak of long ones, in order and within the budget", () => {
    const values = EPOCHS.map((epoch) => 100 / epoch);
    values[6789] = 1000;
    values[4321] = -1000;
    const kept = thinned(values, 200);
    expect(kept.length).toBeLessThanOrEqual(200);
    expect(kept).toEqual([...new Set(kept)].sort((a, b) => a - b));
    expect(kept).toEqual(expect.arrayContaining([0, 4321, 6789, 9999]));
  });
});

describe("joined", () => {
  it("draws at most 2000 points of all curves together", () => {
    const curve = { x: EPOCHS, values: EPOCHS.map((epoch) => Math.sin(epoch)) };
    for (const count of [1, 2, 12]) {
      const rows = joined(Array.from({ length: count }, () => curve));
      expect(countPoints(rows)).toBeLessThanOrEqual(MAX_POINTS);
      expect(countPoints(rows)).toBeGreaterThan(MAX_POINTS * 0.8);
    }
  });
  it("puts curves of other lengths on one axis", () => {
    const rows = joined([
      { x: [1, 2, 3], values: [5, 4, 3] },
      { x: [2, 4], values: [9, 8] },
    ]);
    expect(rows).toEqual([
      [1, 2, 3, 4],
      [5, 4, 3, null],
      [null, 9, null, 8],
    ]);
  });
});
