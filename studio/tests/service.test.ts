import { beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { serve } from "./page";

const { address, parse } = await import("../src/router");
const { currentModel, models, sought, startService, unknownModel } = await import("../src/state/service");

const model = (name: string, operation = "samples") => ({ name, version: "1", versions: ["1"], operations: { [operation]: {} }, image: { height: 28 } });
const show = (path: string) => (address.value = parse(new URL(path, "http://service")));

beforeAll(() => {
  vi.useFakeTimers();
  serve({ "/v1/models": [{ data: [model("first")] }] });
  startService();
});
beforeEach(() => {
  show("/draw");
  models.state.value = { data: [model("first"), model("large", "upscales")] as never, problem: null };
});

describe("the model of the address", () => {
  it("is the first that is able, if the address names none", () => {
    expect(currentModel.value?.name).toBe("first");
  });
  it("is looked for again, once, if it is unknown, and found if it is new", async () => {
    const requested = serve({ "/v1/models": [{ data: [model("first"), model("mine")] }] });
    show("/draw?model=mine");
    expect([currentModel.value, sought.value]).toEqual([null, "mine"]);
    await vi.waitFor(() => expect(currentModel.value?.name).toBe("mine"));
    expect(requested).toEqual(["/v1/models"]);
  });
  it("is no other one if it stays unknown", async () => {
    const requested = serve({ "/v1/models": [{ data: [model("first")] }] });
    show("/draw?model=gone");
    await vi.waitFor(() => expect(sought.value).toBeNull());
    expect([currentModel.value, unknownModel.value]).toEqual([null, "gone"]);
    expect(requested).toHaveLength(1);
  });
  it("is no other one if it cannot do what the area needs", () => {
    show("/draw?model=large");
    expect([currentModel.value, unknownModel.value]).toEqual([null, null]);
  });
});
