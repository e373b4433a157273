import { describe, expect, it } from "vitest";
import type { Model } from "../src/api/types";
import { codeOf, codeShape, decodingOf, formatChanges, isMeasured, layersOf, parseChanges, parseCode, parseLayer, withChanges } from "../src/areas/plane/codes";
import { frameAt } from "../src/areas/plane/frames";
import { probability, quantile } from "../src/areas/plane/normal";
import { beside, cellsFor } from "../src/areas/plane/place";

describe("quantile", () => {
  it.each([
    [0.5, 0],
    [0.975, 1.959963984540054],
    [0.0125, -2.241402727604947],
    [0.001, -3.090232306167813],
  ])("of %d is that of the normal distribution", (p, z) => {
    expect(quantile(p)).toBeCloseTo(z, 7);
    expect(probability(z)).toBeCloseTo(p, 9);
  });
  it("has the whole line on the plane", () => {
    expect(probability(-99)).toBe(0);
    expect(probability(99)).toBe(1);
  });
});

const SHAPE = { length: 3, minimum: -3.5, maximum: 3.5, active: [2, 0, 1] };

describe("codes", () => {
  it("are not drawn as 0 or 1 where a model can do without", () => {
    const model = (properties: object) => ({ operations: { decodings: { options: { properties } } } }) as unknown as Model;
    const binary = model({ binarization: { enum: ["draw", "threshold", "none"] } });
    expect(decodingOf(binary, "bihm@2")).toEqual({ model: "bihm@2", seed: 1, options: { binarization: "none" } });
    expect(decodingOf(model({ output: { enum: ["means", "draws"] } }), "vae")).toEqual({ model: "vae", seed: 1 });
  });
  it("are the same for the same seed, and in the middle of the range without one", () => {
    expect(codeOf(SHAPE, null)).toEqual([0, 0, 0]);
    expect(codeOf(SHAPE, 5)).toEqual(codeOf(SHAPE, 5));
    expect(codeOf(SHAPE, 5)).not.toEqual(codeOf(SHAPE, 6));
    const many = codeOf({ ...SHAPE, length: 2000 }, 1);
    const variance = many.reduce((sum, value) => sum + value * value, 0) / many.length;
    expect(variance).toBeGreaterThan(0.9);
    expect(variance).toBeLessThan(1.1);
    expect(new Set(codeOf({ ...SHAPE, length: 50, minimum: 0, maximum: 1 }, 1))).toEqual(new Set([0, 1]));
  });
  it("are changed as the address says, which ignores what is no change", () => {
    const changes = parseChanges("2:1.5,0:-1,9:3,x:1,1:y", SHAPE);
    expect(withChanges([0, 0, 0], changes)).toEqual([-1, 0, 1.5]);
    expect(formatChanges(changes)).toBe("2:1.5,0:-1");
    expect(formatChanges(new Map())).toBeNull();
    expect(parseCode("0.34,-1.2", 2)).toEqual([0.34, -1.2]);
    expect(parseCode("0.34", 2)).toBeNull();
    expect(parseCode("a,b", 2)).toBeNull();
  });
  it("are those of the lowest layer, or of the layer that the address names", () => {
    const decodings = { options: { properties: { layer: { default: 1 } } }, codes: { sizes: [300, 10], minimum: 0, maximum: 1, option: "layer" } };
    const model = { operations: { decodings }, codes: { active: [{ index: 4, activity: 1 }] } } as unknown as Model;
    expect([undefined, "1", "2", "x"].map((text) => parseLayer(text, layersOf(model)))).toEqual([0, 1, 0, 0]);
    expect(codeShape(model, 1)).toEqual({ length: 10, minimum: 0, maximum: 1, active: [4] });
    expect(codeShape(model)?.active).toHaveLength(300);
    expect([0, 1].map((layer) => isMeasured(model, layer))).toEqual([false, true]);
    expect(decodingOf(model, "bihm", 1)).toEqual({ model: "bihm", seed: 1, options: { layer: 1 } });
    expect(codeShape({ operations: {} } as Model)).toBeNull();
    expect(layersOf({ operations: {} } as Model)).toBeNull();
  });
});

describe("the plane", () => {
  it("has as many pictures as fit, within the service's limits", () => {
    expect(cellsFor(0, 28)).toBe(0);
    expect(cellsFor(850, 28)).toBe(30);
    expect(cellsFor(100, 28)).toBe(8);
    expect(cellsFor(9000, 28)).toBe(64);
  });
  it.each([
    [10, 10],
    [790, 10],
    [10, 790],
    [790, 790],
    [400, 400],
  ])("shows the picture inside itself, and not below the hand at %d, %d", (x, y) => {
    const place = beside({ x, y }, 140, 800);
    expect(place.x).toBeGreaterThanOrEqual(0);
    expect(place.y).toBeGreaterThanOrEqual(0);
    expect(place.x + 140).toBeLessThanOrEqual(800);
    expect(place.y + 164).toBeLessThanOrEqual(800);
    expect(x < place.x || x > place.x + 140 || y < place.y || y > place.y + 164).toBe(true);
  });
});

describe("frameAt", () => {
  it("runs forwards and backwards, and shows each end once", () => {
    expect(Array.from({ length: 9 }, (_, tick) => frameAt(tick, 4))).toEqual([0, 1, 2, 3, 2, 1, 0, 1, 2]);
    expect(frameAt(5, 1)).toBe(0);
    expect(frameAt(5, 0)).toBe(0);
  });
});
