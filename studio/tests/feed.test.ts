import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { json, problem, type Routes, serve, stream } from "./page";

const { RunFeed } = await import("../src/areas/train/feed");
const { models } = await import("../src/state/service");

const TRAINING = { id: "j", model: "mine", version: null, status: "running", progress: 0.5, problem: null };
const ENDED = { ...TRAINING, version: "1", status: "succeeded", progress: 1 };
const MODEL = { name: "other", versions: ["1"], version: "1", operations: {}, image: { height: 28 } };

function routes(changes: Routes): Routes {
  return {
    "/v1/trainings/j": [TRAINING],
    "/v1/trainings/j/previews": [{ data: [] }],
    "/v1/jobs/j/events": [stream(["status", { status: "succeeded" }])],
    "/v1/models": [{ data: [MODEL, { ...MODEL, name: "mine" }] }],
    ...changes,
  };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("RunFeed", () => {
  it("shows an error until the training is loaded again, which is tried while the service is unavailable", async () => {
    serve(routes({ "/v1/trainings/j": [problem(502), TRAINING], "/v1/jobs/j/events": [problem(502), stream(["status", { status: "succeeded" }])] }));
    const feed = new RunFeed("j");
    await vi.advanceTimersByTimeAsync(10);
    expect(feed.problem.value?.status).toBe(502);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(feed.problem.value).toBeNull();
    expect(feed.training.value?.model).toBe("mine");
    expect(feed.log.value).toEqual(["succeeded"]);
    feed.stop();
  });
  it("starts after an error when it is retried", async () => {
    const served = routes({ "/v1/trainings/j": [problem(404)], "/v1/jobs/j/events": [problem(404)] });
    serve(served);
    const feed = new RunFeed("j");
    await vi.advanceTimersByTimeAsync(10_000);
    expect(feed.problem.value?.status).toBe(404);
    Object.assign(served, routes({}));
    await feed.retry();
    expect(feed.problem.value).toBeNull();
    expect(feed.training.value?.model).toBe("mine");
    expect(feed.log.value).toEqual(["succeeded"]);
    feed.stop();
  });
  it("does not replace a newer training by an older one", async () => {
    serve(routes({ "/v1/jobs/j/events": [problem(404)] }));
    const feed = new RunFeed("j");
    await vi.advanceTimersByTimeAsync(10_000);
    let respond: (response: Response) => void = () => undefined;
    const slow = new Promise<Response>((resolve) => (respond = resolve));
    vi.stubGlobal("fetch", () => slow);
    const older = feed.reload();
    serve(routes({ "/v1/trainings/j": [ENDED] }));
    await feed.reload();
    respond(json(TRAINING));
    await older;
    expect(feed.training.value?.status).toBe("succeeded");
    feed.stop();
  });
  it("loads the models again, once, when its version is not among them", async () => {
    models.state.value = { data: [MODEL as never], problem: null };
    const requested = serve(routes({ "/v1/trainings/j": [ENDED] }));
    const feed = new RunFeed("j");
    await vi.advanceTimersByTimeAsync(10_000);
    expect(models.data?.map(({ name }) => name)).toContain("mine");
    await feed.reload();
    expect(requested.filter((path) => path === "/v1/models")).toHaveLength(1);
    feed.stop();
  });
});
