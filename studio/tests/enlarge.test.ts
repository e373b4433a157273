import { describe, expect, it } from "vitest";
import type { Model } from "../src/api/types";
import { fieldsFor, methodsOf, ONLY, optionsOf } from "../src/areas/enlarge/request";
import { upscaleSnippet } from "../src/areas/enlarge/snippet";

const PROPERTIES = {
  scale: { type: "integer", minimum: 2, maximum: 4, default: 4 },
  method: { type: "string", enum: ["bicubic", "tv", "mse"], default: "mse" },
  fidelity: { type: "number", minimum: 0, maximum: 1, default: 0.5 },
};
const model = (properties: object) => ({ operations: { upscales: { options: { properties } } } }) as unknown as Model;

describe("the request", () => {
  it("names the methods of the address in the model's order, or the default one", () => {
    expect(methodsOf(model(PROPERTIES), new Map([["method", "tv,bicubic,other"]]))).toEqual(["bicubic", "tv"]);
    expect(methodsOf(model(PROPERTIES), new Map())).toEqual(["mse"]);
    expect(methodsOf(model({ scale: PROPERTIES.scale }), new Map())).toEqual([ONLY]);
  });
  it("has the options of the address, and one method", () => {
    const options = optionsOf(model(PROPERTIES), new Map([["fidelity", "0.2"], ["method", "tv"], ["other", "1"]]));
    expect(fieldsFor("m", "tv", options)).toEqual({ model: "m", fidelity: 0.2, method: "tv" });
    expect(fieldsFor("m", ONLY, {})).toEqual({ model: "m" });
  });
});

describe("upscaleSnippet", () => {
  const request = { operation: "upscales", body: { file: "my cat.jpg", model: "m", ensemble: true }, origin: "http://service", withKey: false };
  it("sends the photograph as a file, in every language", () => {
    expect(upscaleSnippet("curl", request)).toContain("-F image=@'my cat.jpg' \\\n  -F model=m");
    expect(upscaleSnippet("Python", request)).toContain('client.upscales("my cat.jpg", "my cat-enlarged.png", model="m", ensemble=True)');
    expect(upscaleSnippet("TypeScript", request)).toContain('form.append("ensemble", "true");');
  });
  it.each(["curl", "Python", "TypeScript"] as const)("names a key in %s only where one is needed", (language) => {
    expect(upscaleSnippet(language, request)).not.toContain("REVERIE_KEY");
    expect(upscaleSnippet(language, { ...request, withKey: true })).toContain("REVERIE_KEY");
  });
});
