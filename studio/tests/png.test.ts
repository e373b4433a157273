import { crc32, deflateSync } from "node:zlib";
import { describe, expect, it, vi } from "vitest";
import { readPng } from "../src/lib/png";

class FakeImageData {
  constructor(
    readonly data: Uint8ClampedArray,
    readonly width: number,
    readonly height: number,
  ) {}
}
vi.stubGlobal("ImageData", FakeImageData);

function chunk(type: string, data: Uint8Array): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  const named = Buffer.concat([Buffer.from(type), data]);
  const checksum = Buffer.alloc(4);
  checksum.writeUInt32BE(crc32(named));
  return Buffer.concat([length, named, checksum]);
}

function png(width: number, height: number, lines: readonly number[], { depth = 8, color = 0, interlaced = 0 } = {}): Uint8Array<ArrayBuffer> {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([depth, color, 0, 0, interlaced], 8);
  const file = Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(Uint8Array.from(lines))),
    chunk("IEND", new Uint8Array()),
  ]);
  return new Uint8Array(file);
}

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
