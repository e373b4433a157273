import { describe, expect, it, vi } from "vitest";

const setItem = vi.fn();
vi.stubGlobal("localStorage", { getItem: () => null, setItem });
const { counted, signTest, tallies, tallyOf, vote } = await import("../src/areas/compare/tally");

describe("tally", () => {
  it("is the same in either order of the models", () => {
    const once = counted({}, "b", "a", "first");
    const twice = counted(once, "a", "b", "second");
    const all = counted(twice, "a", "b", "equal");
    expect(tallyOf(all, "b", "a")).toEqual({ first: 2, second: 0, equal: 1 });
    expect(tallyOf(all, "a", "b")).toEqual({ first: 0, second: 2, equal: 1 });
    expect(tallyOf(all, "a", "c")).toEqual({ first: 0, second: 0, equal: 0 });
  });
  it("is kept", () => {
    vote("x", "y", "first");
    expect(tallyOf(tallies.value, "x", "y").first).toBe(1);
    expect(setItem).toHaveBeenCalledOnce();
  });
});

describe("signTest", () => {
  it.each([
    [0, 0, 1],
    [1, 0, 1],
    [5, 5, 1],
    [5, 0, 0.0625],
    [8, 1, 0.0390625],
  ])("of %i to %i is %d", (first, second, probability) => {
    expect(signTest({ first, second })).toBeCloseTo(probability, 10);
    expect(signTest({ first: second, second: first })).toBeCloseTo(probability, 10);
  });
});
