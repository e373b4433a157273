import { afterEach, describe, expect, it, vi } from "vitest";

vi.stubGlobal("sessionStorage", { getItem: () => null, setItem: vi.fn(), removeItem: vi.fn() });
vi.stubGlobal("location", { origin: "http://service" });
const { fieldError, generalDetail, ProblemError, readProblem } = await import("../src/api/problem");
const { request, retryDelay } = await import("../src/api/send");
const { follow } = await import("../src/api/operations");
const { askForKey, enterKey, keyNeeded } = await import("../src/api/key");
const { events } = await import("../src/api/events");
const { Latest } = await import("../src/api/latest");

const PROBLEM = {
  type: "about:blank",
  title: "Invalid request",
  status: 422,
  detail: "count: 0 is not between 1 and 65536",
  request_id: "r1",
  errors: [
    { field: "count", detail: "0 is not between 1 and 65536" },
    { field: "options.steps", detail: "too many" },
  ],
};

function json(body: unknown, status: number, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), { status, headers: { "content-type": "application/problem+json", ...headers } });
}

function answers(...responses: (Response | Error)[]) {
  const fake = vi.fn<(path: string, init: { headers: Record<string, string> }) => Promise<Response>>(() => {
    const next = responses.shift() ?? new Error("no more responses");
    return next instanceof Error ? Promise.reject(next) : Promise.resolve(next);
  });
  vi.stubGlobal("fetch", fake);
  return fake;
}

afterEach(() => vi.useRealTimers());

describe("problems", () => {
  it("are shown beside their field, and the rest in one line", () => {
    expect(fieldError(PROBLEM, "count")).toBe("0 is not between 1 and 65536");
    expect(fieldError(PROBLEM, "steps")).toBe("too many");
    expect(fieldError(PROBLEM, "seed")).toBeNull();
    expect(generalDetail(PROBLEM, ["count"])).toBe("options.steps: too many");
    expect(generalDetail(PROBLEM, ["count", "steps"])).toBeNull();
  });
  it("may name their field in the detail only", () => {
    const problem = { ...PROBLEM, errors: null, detail: "count: 0 is not between 1 and 65536" };
    expect(fieldError(problem, "count")).toBe("0 is not between 1 and 65536");
    expect(generalDetail(problem, ["count"])).toBeNull();
    expect(generalDetail({ ...problem, status: 503 }, ["count"])).toBe(problem.detail);
  });
  it("are made of responses that have another body", async () => {
    const problem = await readProblem(new Response("<h1>Bad gateway</h1>", { status: 502, statusText: "Bad Gateway" }));
    expect(problem).toMatchObject({ status: 502, title: "Bad Gateway", detail: "<h1>Bad gateway</h1>" });
  });
  it("are thrown with the service's words", async () => {
    answers(json(PROBLEM, 422));
    await expect(request("/v1/samples", { method: "POST" })).rejects.toThrow(ProblemError);
  });
});

describe("send", () => {
  it("repeats a request that the service is too busy for", async () => {
    const fake = answers(json({}, 503, { "retry-after": "0" }), json({ ok: true }, 200));
    expect((await request("/v1/models")).status).toBe(200);
    expect(fake).toHaveBeenCalledTimes(2);
  });
  it("does not wait longer than a reader would", () => {
    expect(retryDelay(json({}, 503, { "retry-after": "60" }), 1)).toBeNull();
    expect(retryDelay(json({}, 503), 1)).toBeNull();
    expect(retryDelay(json({}, 503, { "retry-after": "2" }), 1)).toBe(2);
    expect(retryDelay(json({}, 503, { "retry-after": "2" }), 5)).toBeNull();
  });
  it("asks for no key once it is cancelled", async () => {
    await expect(askForKey("a key is needed", null, AbortSignal.abort())).rejects.toMatchObject({ name: "AbortError" });
    expect(keyNeeded.value).toBeNull();
  });
  it("asks for a key once, and sends it", async () => {
    const fake = answers(json(PROBLEM, 401), json(PROBLEM, 401), json({}, 200), json({}, 200));
    const both = Promise.all([request("/v1/models"), request("/v1/jobs")]);
    await vi.waitFor(() => expect(keyNeeded.value).not.toBeNull());
    enterKey("secret");
    await both;
    expect(keyNeeded.value).toBeNull();
    expect(fake.mock.calls.at(-1)?.[1].headers.Authorization).toBe("Bearer secret");
  });
});

describe("events", () => {
  it("resume after the last one when the connection breaks", async () => {
    vi.useFakeTimers();
    const fake = answers(
      new Response('id: 1\nevent: status\ndata: {"status":"running"}\n\n', { status: 200 }),
      new TypeError("network"),
      new Response('id: 2\nevent: progress\ndata: {"progress":0.5}\n\nid: 3\nevent: status\ndata: {"status":"succeeded"}\n\n', { status: 200 }),
    );
    const seen: unknown[] = [];
    const reading = (async () => {
      for await (const event of events("/v1/jobs/j/events", new AbortController().signal)) seen.push([event.name, event.data]);
    })();
    await vi.advanceTimersByTimeAsync(10_000);
    await reading;
    expect(seen).toEqual([
      ["status", { status: "running" }],
      ["progress", { progress: 0.5 }],
      ["status", { status: "succeeded" }],
    ]);
    expect(fake.mock.calls.at(-1)?.[1].headers["Last-Event-ID"]).toBe("1");
  });
  it.each([429, 502, 503, 504])("are followed again after a status %d, not earlier than it says", async (status) => {
    vi.useFakeTimers();
    const fake = answers(json({}, status, { "retry-after": "20" }), new Response('id: 1\nevent: status\ndata: {"status":"succeeded"}\n\n'));
    const seen: unknown[] = [];
    const reading = (async () => {
      for await (const event of events("/v1/jobs/j/events", new AbortController().signal)) seen.push(event.data);
    })();
    await vi.advanceTimersByTimeAsync(19_000);
    expect(fake).toHaveBeenCalledTimes(1);
    await vi.advanceTimersByTimeAsync(2_000);
    await reading;
    expect(seen).toEqual([{ status: "succeeded" }]);
  });
  it("end with an error that has another cause", async () => {
    answers(json(PROBLEM, 404));
    await expect(events("/v1/jobs/j/events", new AbortController().signal).next()).rejects.toThrow(ProblemError);
  });
});

describe("follow", () => {
  it("returns when the job has succeeded, also if the service is unavailable meanwhile", async () => {
    vi.useFakeTimers();
    const fake = answers(
      new Response('id: 1\nevent: status\ndata: {"status":"succeeded"}\n\n'),
      json({}, 502),
      json({}, 504),
      json({ id: "j", status: "succeeded" }, 200),
    );
    const following = follow("j", { signal: new AbortController().signal });
    await vi.advanceTimersByTimeAsync(10_000);
    await following;
    expect(fake).toHaveBeenCalledTimes(4);
  });
});

describe("Latest", () => {
  it("runs the first and the newest of many, one at a time", async () => {
    const ran: number[] = [];
    let running = 0;
    const latest = new Latest<number>(async (input) => {
      running++;
      expect(running).toBe(1);
      await Promise.resolve();
      ran.push(input);
      running--;
    });
    for (const input of [1, 2, 3, 4]) latest.submit(input);
    await vi.waitFor(() => expect(ran).toEqual([1, 4]));
  });
  it("cancels what runs and drops what waits", async () => {
    const ran: string[] = [];
    const latest = new Latest<string>(
      (input, signal) => new Promise((resolve) => signal.addEventListener("abort", () => resolve(void ran.push(`${input} cancelled`)))),
    );
    latest.submit("first");
    latest.submit("second");
    latest.cancel();
    await vi.waitFor(() => expect(ran).toEqual(["first cancelled"]));
  });
});
