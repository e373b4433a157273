/** What the modules of the page find in a browser, for tests that load them in Node.js: import it first. */
import { vi } from "vitest";

vi.stubGlobal("sessionStorage", { getItem: () => null, setItem: vi.fn(), removeItem: vi.fn() });
vi.stubGlobal("location", { origin: "http://service", href: "http://service/" });
vi.stubGlobal("history", { pushState: vi.fn(), replaceState: vi.fn() });
vi.stubGlobal("document", { visibilityState: "hidden", addEventListener: vi.fn() });

/** What a path responds with: a body for JSON, or a response; the first of a list, until one is left. */
export type Routes = Record<string, unknown[]>;

/** Lets `fetch` respond from `routes`; returns the paths that were requested. */
export function serve(routes: Routes): string[] {
  const requested: string[] = [];
  vi.stubGlobal("fetch", (target: Request | string) => {
    const path = new URL(typeof target === "string" ? target : target.url, "http://service").pathname;
    requested.push(path);
    const left = routes[path] ?? [];
    const next = left.length > 1 ? left.shift() : left[0];
    if (next === undefined) return Promise.resolve(problem(404));
    return Promise.resolve(next instanceof Response ? next.clone() : json(next));
  });
  return requested;
}

export function json(body: unknown, status = 200, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json", ...headers } });
}

export function problem(status: number, headers: Record<string, string> = {}): Response {
  return json({ type: "about:blank", title: `Error ${status}`, status, detail: `status ${status}`, request_id: "" }, status, headers);
}

/** Returns the response of an event stream with these events. */
export function stream(...events: [name: string, data: object][]): Response {
  const text = events.map(([name, data], index) => `id: ${index + 1}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`).join("");
  return new Response(text, { headers: { "content-type": "text/event-stream" } });
}
