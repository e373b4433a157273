import { beforeEach, describe, expect, it, vi } from "vitest";
import type { Model } from "../src/api/types";
import { png } from "./pngs";

vi.stubGlobal("sessionStorage", { getItem: () => null, setItem: vi.fn(), removeItem: vi.fn() });
vi.stubGlobal("location", { origin: "http://service" });
const { difference, hasStates, loadStart, orderOf } = await import("../src/areas/plane/states");

const SHAPE = { length: 3, minimum: 0, maximum: 1, active: [0, 1, 2] };
const EFFECTS = [0, 20, 100];
const MODEL = {
  operations: { samples: {}, encodings: {}, decodings: { options: { properties: {} }, codes: { sizes: [3, 2], minimum: 0, maximum: 1, option: "layer" } } },
} as unknown as Model;

interface Body {
  seed: number;
  count?: number;
  codes: number[][];
}

/** A service whose picture is one pixel: the sum of a code's numbers, each times its effect. */
const service = vi.fn((path: string, body: Body): object => {
  if (path === "/v1/samples") return { images: [`picture ${body.seed}`] };
  if (path === "/v1/encodings") return { layers: [[[0.1234, 1, body.seed === 1 ? 0 : 1]], [[0, 0]]] };
  const pixels = body.codes.map((code) => code.reduce((sum, value, index) => sum + value * (EFFECTS[index] ?? 0), 0));
  const images = pixels.map((pixel) => Buffer.from(png(1, 1, [0, pixel])).toString("base64"));
  return { images: body.count === undefined ? images : Array.from({ length: body.count }, () => images[0]) };
});
vi.stubGlobal("fetch", (path: string, { body }: { body: string }) => Promise.resolve(Response.json(service(path, JSON.parse(body) as Body))));

const load = (reference: string, seed: number | null) => loadStart(MODEL, reference, 0, SHAPE, seed, new AbortController().signal);

describe("states of a layer", () => {
  beforeEach(() => {
    service.mockClear();
  });
  it("are those of a drawn picture, and those that change it most come first", async () => {
    expect(await load("a", null)).toEqual({ code: [0.123, 1, 0], order: [2, 1, 0] });
    const [sample, encoding, unchanged, changed] = service.mock.calls.map(([, body]) => body);
    expect(sample).toEqual({ model: "a", count: 1, seed: 1 });
    expect(encoding).toEqual({ model: "a", seed: 1, images: ["picture 1"] });
    expect(unchanged).toMatchObject({ seed: 1, codes: [[0.123, 1, 0]], count: 3 });
    expect(changed).toMatchObject({ seed: 1, codes: [[1, 1, 0], [0.123, 0, 0], [0.123, 1, 1]] });
  });
  it("are in the order of the first seed, which is measured once", async () => {
    expect(await load("b", 7)).toEqual({ code: [0.123, 1, 1], order: [2, 1, 0] });
    expect(service).toHaveBeenCalledTimes(6);
    expect((await load("b", 8)).order).toEqual([2, 1, 0]);
    expect(service).toHaveBeenCalledTimes(8);
  });
  it("are known of models that encode the pictures that they draw", () => {
    expect(hasStates(MODEL)).toBe(true);
    expect(hasStates({ operations: { decodings: MODEL.operations.decodings } } as unknown as Model)).toBe(false);
    expect(hasStates({ operations: { samples: {}, encodings: {}, decodings: { codes: { sizes: [2] } } } } as unknown as Model)).toBe(false);
  });
});

it("differences are sums over all pixels, and decide the order", () => {
  expect(difference(Uint8ClampedArray.of(0, 255), Uint8ClampedArray.of(10, 250))).toBe(15);
  expect(difference(undefined, Uint8ClampedArray.of(1))).toBe(0);
  expect(orderOf([0, 3, 0, 9])).toEqual([3, 1, 0, 2]);
});
