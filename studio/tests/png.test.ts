import { describe, expect, it } from "vitest";
import { readPng } from "../src/lib/png";
import { png } from "./pngs";

describe("readPng", () => {
  it("reads grey pictures", async () => {
    const picture = await readPng(png(2, 2, [0, 10, 20, 0, 30, 255]));
    expect(picture).toMatchObject({ width: 2, height: 2 });
    expect([...(picture?.data ?? [])]).toEqual([10, 10, 10, 255, 20, 20, 20, 255, 30, 30, 30, 255, 255, 255, 255, 255]);
  });
  it("reads pictures in colour", async () => {
    const picture = await readPng(png(1, 1, [0, 1, 2, 3], { color: 2 }));
    expect([...(picture?.data ?? [])]).toEqual([1, 2, 3, 255]);
  });
  it("leaves other files to the browser", async () => {
    expect(await readPng(new Uint8Array([0xff, 0xd8, 0xff]))).toBeNull();
    expect(await readPng(png(2, 1, [1, 10, 20]))).toBeNull(); // filtered
    expect(await readPng(png(2, 1, [0, 10]))).toBeNull(); // a pixel is missing
    expect(await readPng(png(2, 1, [0, 0, 1, 0, 2], { depth: 16 }))).toBeNull();
    expect(await readPng(png(2, 1, [0, 10, 20], { interlaced: 1 }))).toBeNull();
    expect(await readPng(png(2, 1, [0, 0, 1], { color: 3 }))).toBeNull(); // with a palette
  });
});
