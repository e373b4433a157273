import { describe, expect, it, vi } from "vitest";

vi.stubGlobal("location", { href: "http://service/draw?seed=3", origin: "http://service" });
const replaceState = vi.fn();
const pushState = vi.fn();
vi.stubGlobal("history", { replaceState, pushState });
const { address, format, go, parse, setParams } = await import("../src/router");

describe("router", () => {
  it("reads the area and the parameters of an address", () => {
    expect(parse(new URL("http://service/models?x=1%202"))).toEqual({ area: "models", params: new Map([["x", "1 2"]]) });
    expect(parse(new URL("http://service/")).area).toBe("draw");
  });
  it("changes parameters, and removes those that are null", () => {
    setParams({ seed: 4, count: 64 });
    expect(pushState).toHaveBeenLastCalledWith(null, "", "/draw?seed=4&count=64");
    setParams({ seed: null }, { replace: true });
    expect(replaceState).toHaveBeenLastCalledWith(null, "", "/draw?count=64");
    go("jobs");
    expect(format(address.value)).toBe("/jobs");
  });
  it("adds nothing to the history for the same address", () => {
    pushState.mockClear();
    go("jobs");
    expect(pushState).not.toHaveBeenCalled();
  });
});
