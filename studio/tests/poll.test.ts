import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { poll } from "../src/state/resource";

const page = new EventTarget() as EventTarget & { visibilityState: string };

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("document", Object.assign(page, { visibilityState: "visible" }));
});
afterEach(() => vi.useRealTimers());

/** Hides the page and shows it again. */
const hideAndShow = () => page.dispatchEvent(new Event("visibilitychange"));

it("calls once per interval, however often the page is shown again during a call", async () => {
  const action = vi.fn(() => new Promise<void>((resolve) => setTimeout(resolve, 500)));
  const stop = poll(action, () => 1);
  for (let times = 0; times < 5; times++) hideAndShow();
  await vi.advanceTimersByTimeAsync(8900);
  expect(action).toHaveBeenCalledTimes(6); // a call every 1.5 s
  stop();
  await vi.advanceTimersByTimeAsync(9000);
  expect(action).toHaveBeenCalledTimes(6);
});

it("goes on after a call has failed", async () => {
  const action = vi.fn(() => Promise.resolve());
  action.mockRejectedValueOnce(new Error("once"));
  process.once("unhandledRejection", vi.fn());
  const stop = poll(action, () => 1);
  await vi.advanceTimersByTimeAsync(2500);
  expect(action).toHaveBeenCalledTimes(3);
  stop();
});
