import { describe, expect, it } from "vitest";
import { snippet } from "../src/lib/snippets";

const REQUEST = {
  operation: "samples",
  body: { model: "vae@1", count: 4, seed: 3, options: { output: "draws", below: null } },
  origin: "http://127.0.0.1:8000",
  withKey: false,
};

describe("snippet", () => {
  it("quotes the body for the shell", () => {
    expect(snippet("curl", { ...REQUEST, body: { model: "it's" } })).toContain(`-d '{"model":"it'\\''s"}'`);
  });
  it("writes values as Python does, options as arguments", () => {
    const text = snippet("Python", REQUEST);
    expect(text).toContain('client.samples("vae@1", count=4, seed=3, output="draws", below=None)');
  });
  it.each(["curl", "Python", "TypeScript"] as const)("names a key in %s only where one is needed", (language) => {
    expect(snippet(language, REQUEST)).not.toContain("REVERIE_KEY");
    expect(snippet(language, { ...REQUEST, withKey: true })).toContain("REVERIE_KEY");
  });
});
