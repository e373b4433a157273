import { describe, expect, it } from "vitest";
import type { Model } from "../src/api/types";
import { describeEncoding, rowsOf } from "../src/areas/paint/encoding";
import { sizesOf } from "../src/areas/paint/sizes";
import { Painting } from "../src/components/paint/painting";
import { blank, digit, inverted, isBlank, stroke } from "../src/components/paint/pixels";

const SIZE = { width: 28, height: 28 };
const BRUSH = { radius: 1, erases: false, hard: false };

describe("stroke", () => {
  const line = stroke(blank(SIZE), { x: 5.5, y: 5.5 }, { x: 20.5, y: 5.5 }, BRUSH);
  it("covers the line between two places, with a soft edge", () => {
    expect(line.values[5 * 28 + 12]).toBe(255);
    expect(line.values[4 * 28 + 12]).toBe(128);
    expect(line.values[8 * 28 + 12]).toBe(0);
    expect(line.values[5 * 28 + 2]).toBe(0);
  });
  it("changes no other picture, and is erased by an eraser", () => {
    const erased = stroke(line, { x: 5.5, y: 5.5 }, { x: 20.5, y: 5.5 }, { ...BRUSH, radius: 3, erases: true });
    expect(isBlank(erased)).toBe(true);
    expect(isBlank(line)).toBe(false);
  });
  it("of a hard brush is white or black, as a mask is", () => {
    const mask = stroke(blank(SIZE), { x: 3, y: 3 }, { x: 9, y: 7 }, { radius: 2, erases: false, hard: true });
    expect(new Set(mask.values)).toEqual(new Set([0, 255]));
  });
  it("ends at the picture's edge", () => {
    const edge = stroke(blank(SIZE), { x: -5, y: 14 }, { x: 40, y: 14 }, BRUSH);
    expect(edge.values.filter((value) => value === 255).length).toBeGreaterThanOrEqual(28);
  });
});

describe("pictures", () => {
  it("begin with a digit, on any size", () => {
    expect(isBlank(digit("2", SIZE))).toBe(false);
    expect(isBlank(digit("7", { width: 8, height: 8 }))).toBe(false);
    expect(inverted(inverted(digit("0", SIZE))).values).toEqual(digit("0", SIZE).values);
  });
  it("return to what they were before", () => {
    const painting = new Painting(SIZE);
    painting.begin();
    painting.stroke("pixels", { x: 3, y: 3 }, { x: 9, y: 9 }, BRUSH);
    painting.replace("mask", inverted(blank(SIZE)));
    painting.clear();
    expect([isBlank(painting.pixels.value), isBlank(painting.mask.value), painting.undoable.value]).toEqual([true, true, 3]);
    painting.undo();
    expect([isBlank(painting.pixels.value), isBlank(painting.mask.value)]).toEqual([false, false]);
    painting.undo();
    painting.undo();
    painting.undo();
    expect([isBlank(painting.pixels.value), isBlank(painting.mask.value), painting.undoable.value]).toEqual([true, true, 0]);
  });
});

describe("encodings", () => {
  const common = { model: "m", version: "1", seed: 1 };
  it("are rows of numbers between 0 and 1", () => {
    expect(rowsOf({ ...common, mean: [[-2, 0, 1]] })).toEqual([[0, 0.5, 0.75]]);
    expect(rowsOf({ ...common, layers: [[[0.25, 1]], [[0.5]]] })).toEqual([[0.5], [0.25, 1]]);
    expect(rowsOf({ ...common, code: [[0, 0]] })).toEqual([[0.5, 0.5]]);
  });
  it("are described by their numbers, if those are few", () => {
    expect(describeEncoding({ ...common, mean: [[0.339, -1]] })).toBe("0.34, −1.00");
    expect(describeEncoding({ ...common, mean: [Array<number>(50).fill(0)] })).toBe("50 numbers");
    expect(describeEncoding({ ...common, layers: [[[1]], [[1]]] })).toBe("2 layers");
  });
});

describe("sizesOf", () => {
  it("puts models that read pictures of one size together, the largest size first", () => {
    const model = (name: string, channels: number, side: number, operation: string) =>
      ({ name, image: { channels, width: side, height: side }, operations: { [operation]: {} } }) as unknown as Model;
    const sizes = sizesOf([model("tiny", 1, 8, "energies"), model("vae", 1, 28, "energies"), model("ebgan", 1, 28, "encodings"), model("photos", 3, 128, "upscales")]);
    expect(sizes.map(({ name, models }) => [name, models.map((one) => one.name)])).toEqual([
      ["28x28", ["vae", "ebgan"]],
      ["8x8", ["tiny"]],
    ]);
  });
});
