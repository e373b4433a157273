import { beforeEach, describe, expect, it, vi } from "vitest";
import "./page";
import type { WorkerRequest } from "../src/areas/enlarge/pictures";

const requests: WorkerRequest[] = [];
let decoder: { onmessage: (event: unknown) => void };
class FakeWorker {
  onmessage = () => undefined;
  constructor() {
    // eslint-disable-next-line @typescript-eslint/no-this-alias -- the test responds in its place
    decoder = this;
  }
  postMessage(request: WorkerRequest) {
    requests.push(request);
  }
}
vi.stubGlobal("Worker", FakeWorker);
const { clear, open, opening, photograph, problem } = await import("../src/areas/enlarge/enlargements");

const file = () => new Blob(["x"]);

/** Waits until `count` pictures are being decoded; returns their ids. */
async function decoding(count: number): Promise<number[]> {
  const ids = () => requests.flatMap((request) => (request.type === "decode" ? [request.id] : []));
  await vi.waitFor(() => expect(ids()).toHaveLength(count));
  return ids();
}

function decoded(id: number | undefined, size: { width: number; height: number } | null = { width: 4, height: 4 }) {
  decoder.onmessage({ data: { id, size } });
}

function released(id: number | undefined): boolean {
  return requests.some((request) => request.type === "release" && request.id === id);
}

beforeEach(() => {
  clear();
  requests.length = 0;
});

describe("open", () => {
  it("keeps the newest picture, and releases one that is decoded later", async () => {
    const older = open(file(), "older.png");
    await decoding(1);
    const newer = open(file(), "newer.png");
    const [first, second] = await decoding(2);
    decoded(second);
    await newer;
    decoded(first);
    await older;
    expect([photograph.value?.name, opening.value]).toEqual(["newer.png", false]);
    expect([released(first), released(second)]).toEqual([true, false]);
  });
  it("does not show the error of an older picture", async () => {
    const older = open(file(), "older.png");
    await decoding(1);
    const newer = open(file(), "newer.png");
    const [first, second] = await decoding(2);
    decoded(first, null);
    await older;
    expect([problem.value, opening.value]).toEqual([null, true]);
    decoded(second);
    await newer;
    expect(photograph.value?.name).toBe("newer.png");
  });
  it("shows nothing after the photograph was removed", async () => {
    const removed = open(file(), "removed.png");
    const [id] = await decoding(1);
    clear();
    decoded(id);
    await removed;
    expect([photograph.value, released(id)]).toEqual([null, true]);
  });
});
