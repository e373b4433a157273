import { describe, expect, it } from "vitest";
import { dividerAt, fit, pan, spread, visible, within, zoomAt } from "../src/areas/enlarge/viewport";

const PICTURE = { width: 400, height: 300 };
const VIEW = { width: 800, height: 800 };

describe("fit", () => {
  it("shows the whole picture, in the middle", () => {
    expect(fit(PICTURE, VIEW)).toEqual({ scale: 2, x: 0, y: 100 });
  });
});

describe("zoomAt", () => {
  it("keeps the point below the hand where it is", () => {
    const at = { x: 300, y: 400 };
    const before = fit(PICTURE, VIEW);
    const after = zoomAt(before, 4, at, PICTURE, VIEW);
    expect(after.scale).toBe(8);
    expect((at.x - after.x) / after.scale).toBeCloseTo((at.x - before.x) / before.scale);
    expect((at.y - after.y) / after.scale).toBeCloseTo((at.y - before.y) / before.scale);
  });
  it("stops at single pixels, and at half the size", () => {
    expect(zoomAt(fit(PICTURE, VIEW), 1e6, { x: 0, y: 0 }, PICTURE, VIEW).scale).toBe(64);
    expect(zoomAt(fit(PICTURE, VIEW), 1e-6, { x: 0, y: 0 }, PICTURE, VIEW).scale).toBe(0.5);
  });
});

describe("pan", () => {
  it("never leaves the picture", () => {
    const zoomed = zoomAt(fit(PICTURE, VIEW), 2, { x: 400, y: 400 }, PICTURE, VIEW);
    expect(pan(zoomed, 1e5, 1e5, PICTURE, VIEW)).toEqual({ scale: 4, x: 0, y: 0 });
    expect(pan(zoomed, -1e5, -1e5, PICTURE, VIEW)).toEqual({ scale: 4, x: 800 - 1600, y: 800 - 1200 });
    expect(within({ scale: 1, x: 55, y: -70 }, PICTURE, VIEW)).toEqual({ scale: 1, x: 200, y: 250 });
  });
});

describe("visible", () => {
  it("returns the part of each picture that lies in the view, and where it goes", () => {
    const viewport = { scale: 4, x: -400, y: -200 };
    expect(visible(viewport, PICTURE, 1, VIEW)).toEqual({
      source: { x: 100, y: 50, width: 200, height: 200 },
      target: { x: 0, y: 0, width: 800, height: 800 },
    });
    expect(visible(viewport, PICTURE, 3, VIEW)?.source).toEqual({ x: 300, y: 150, width: 600, height: 600 });
    expect(visible({ scale: 1, x: 900, y: 0 }, PICTURE, 1, VIEW)).toBeNull();
  });
});

describe("the divider", () => {
  it("stays in the view", () => {
    expect([dividerAt(200, VIEW), dividerAt(-5, VIEW), dividerAt(900, VIEW), dividerAt(5, { width: 0, height: 0 })]).toEqual([0.25, 0, 1, 0.5]);
  });
});

describe("spread", () => {
  it("is the distance of two fingers", () => {
    expect(spread({ x: 0, y: 3 }, { x: 4, y: 0 })).toBe(5);
  });
});
