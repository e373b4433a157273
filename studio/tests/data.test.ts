import { describe, expect, it } from "vitest";
import { cellOf } from "../src/areas/data/sheet";
import { pageSize } from "../src/areas/data/facts";
import { gridOf } from "../src/areas/compare/grid";
import { isData, nameFor, type NamedFile } from "../src/lib/dropped";

function named(...paths: string[]): NamedFile[] {
  return paths.map((path) => ({ path, file: {} as File }));
}

describe("files", () => {
  it.each([
    ["My Digits.zip", "my-digits"],
    ["cats/train/1.png", "cats"],
    ["digits-images-idx3-ubyte.gz", "digits-images-idx3-ubyte"],
    ["図.zip", "pictures"],
  ])("of %s make a dataset named %s", (path, name) => {
    expect(nameFor(named(path))).toBe(name);
  });
  it("are sent as they are only if the service reads them", () => {
    expect(isData(named("a.zip"))).toBe(true);
    expect(isData(named("train-images-idx3-ubyte"))).toBe(true);
    expect(isData(named("a.png"))).toBe(false);
    expect(isData(named("a.npz", "b.npz"))).toBe(false);
  });
});

describe("pages", () => {
  it("have as many pictures as the service sends", () => {
    expect(pageSize({ channels: 1, height: 28, width: 28 })).toBe(100);
    expect(pageSize({ channels: 3, height: 512, width: 512 })).toBe(5);
  });
  it("show the part of the sheet that is a picture's", () => {
    const style = cellOf({ width: 28, height: 28 }, 10, 3, "blob:x").style(12);
    expect(style).toMatchObject({ width: "84px", backgroundSize: "840px 252px", backgroundPosition: "-168px -84px" });
  });
});

describe("gridOf", () => {
  it("enlarges by whole factors, and reduces what is too wide", () => {
    const space = { width: 500, height: 700 };
    expect(gridOf(16, { width: 28, height: 28 }, space)).toEqual({ columns: 4, shown: { width: 112, height: 112 } });
    expect(gridOf(16, { width: 96, height: 96 }, { ...space, width: 150 }).columns).toBe(1);
    expect(gridOf(4, { width: 180, height: 1 }, { ...space, width: 150 }).shown.height).toBe(12);
  });
  it("has fewer columns where pictures become larger and all are seen", () => {
    const narrow = { width: 300, height: 700 };
    expect(gridOf(16, { width: 28, height: 28 }, narrow)).toEqual({ columns: 3, shown: { width: 84, height: 84 } });
    expect(gridOf(16, { width: 28, height: 28 }, { ...narrow, height: 400 }).columns).toBe(4);
  });
});
