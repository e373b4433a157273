import { describe, expect, it } from "vitest";
import { layoutOf, MAX_CELLS, visibleCells } from "../src/components/gallery/layout";

const DIGIT = { width: 28, height: 28 };
const DESK = { width: 900, height: 780 };
const PHONE = { width: 366, height: 560 };

describe("layoutOf", () => {
  it("shows 64 digits at once, enlarged by the largest whole factor", () => {
    const layout = layoutOf([64], DIGIT, DESK);
    expect(layout.picture.width % 28).toBe(0);
    expect(layout.height).toBeLessThanOrEqual(DESK.height);
    const rows = Math.ceil(64 / Math.floor((DESK.width + 4) / (layout.picture.width + 28 + 4)));
    expect(rows * (layout.picture.height + 28 + 4)).toBeGreaterThan(DESK.height - 32);
  });
  it("keeps pictures on a phone large enough to touch", () => {
    expect(layoutOf([64], DIGIT, PHONE).picture.width).toBeGreaterThanOrEqual(40);
  });
  it("gives vectors one strip each", () => {
    const layout = layoutOf([10], { width: 180, height: 1 }, DESK);
    expect(layout.columns).toBe(1);
    expect(layout.picture.width % 180).toBe(0);
  });
});

describe("visibleCells", () => {
  it.each([DESK, PHONE, { width: 3000, height: 2000 }])("never returns more than the limit, of 10000 pictures", (view) => {
    const layout = layoutOf([64, 10_000], DIGIT, view);
    for (const top of [0, 700, layout.height / 2, layout.height - view.height]) {
      const cells = visibleCells(layout, top, top + view.height);
      expect(cells.length).toBeGreaterThan(10);
      expect(cells.length).toBeLessThanOrEqual(MAX_CELLS);
      const places = cells.map(({ top: y }) => y);
      expect(Math.min(...places)).toBeLessThanOrEqual(top + 32);
      expect(Math.max(...places)).toBeGreaterThanOrEqual(Math.min(top + view.height, layout.height) - 2 * layout.cell.height);
    }
  });
  it("returns each picture of a small group once", () => {
    const layout = layoutOf([5], DIGIT, DESK);
    expect(visibleCells(layout, 0, DESK.height).map(({ index }) => index)).toEqual([0, 1, 2, 3, 4]);
  });
});
