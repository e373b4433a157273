import { afterEach, describe, expect, it, vi } from "vitest";
import { serve } from "./page";

const { add, cancel, choose, files, labels, problem, step } = await import("../src/areas/data/additions");
const { upload } = await import("../src/api/upload");
const { packed } = await import("../src/lib/dropped");

const sends = vi.fn();

/** A request that is answered at once, and counted. */
class Sent {
  upload = {};
  status = 201;
  statusText = "";
  responseText = '{"name": "digits"}';
  onload = () => undefined;
  onloadend = () => undefined;
  open = vi.fn();
  abort = vi.fn();
  setRequestHeader = vi.fn();
  getResponseHeader = () => "application/json";
  send(form: FormData) {
    sends(form);
    this.onload();
    this.onloadend();
  }
}
vi.stubGlobal("XMLHttpRequest", Sent);

const file = (path: string) => ({ path, file: new File(["x"], path) });

afterEach(() => sends.mockReset());

describe("adding files", () => {
  it("sends nothing if it is cancelled while they are packed", async () => {
    choose([file("a.png"), file("b.png")]);
    const adding = add();
    cancel();
    await adding;
    expect(sends).not.toHaveBeenCalled();
    expect([problem.value, step.value, files.value.length]).toEqual([null, null, 2]);
  });
  it("sends the labels whichever file was chosen first, once", async () => {
    serve({ "/v1/datasets": [{ data: [] }] });
    labels.value = new File(["0"], "labels.idx");
    choose([file("digits.idx")]);
    await add();
    expect((sends.mock.calls[0]?.[0] as FormData).get("labels")).toBeInstanceOf(File);
    expect([labels.value, files.value]).toEqual([null, []]);
  });
});

describe("packed", () => {
  it("stops at the next file", async () => {
    const abort = new AbortController();
    const onFile = vi.fn(() => abort.abort());
    await expect(packed([file("a.png"), file("b.png")], "n", abort.signal, onFile)).rejects.toMatchObject({ name: "AbortError" });
    expect(onFile).toHaveBeenCalledTimes(1);
  });
});

describe("upload", () => {
  it("sends nothing if it was cancelled before", async () => {
    const options = { signal: AbortSignal.abort(), onProgress: vi.fn() };
    await expect(upload("/v1/datasets", new FormData(), options)).rejects.toMatchObject({ name: "AbortError" });
    expect(sends).not.toHaveBeenCalled();
  });
});
