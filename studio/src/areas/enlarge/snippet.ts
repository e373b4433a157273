/** The request of an enlargement as curl, Python or TypeScript: its photograph is a file. */
import { type Language, pythonCall, pythonLiteral, type SnippetRequest } from "../../lib/snippets";

/** Returns the request in a language. Its `body` has the fields of the form, and `file` the name of the photograph. */
export function upscaleSnippet(language: Language, { body: { file, ...fields }, origin, withKey }: SnippetRequest): string {
  const entries = Object.entries(fields);
  const name = String(file);
  const stem = name.replace(/\.\w+$/, "");
  if (language === "curl") {
    return [
      "curl -sS --fail-with-body",
      `${origin}/v1/upscales`,
      ...(withKey ? [`-H "Authorization: Bearer $REVERIE_KEY"`] : []),
      `-H 'Prefer: wait=60'`,
      `-F image=@${quoted(name)}`,
      ...entries.map(([field, value]) => `-F ${field}=${String(value)}`),
      `-o ${quoted(`${stem}-enlarged.png`)}`,
    ].join(" \\\n  ");
  }
  if (language === "Python") {
    const words = entries.map(([field, value]) => `, ${field}=${pythonLiteral(value)}`).join("");
    const files = `${JSON.stringify(name)}, ${JSON.stringify(`${stem}-enlarged.png`)}`;
    return pythonCall(origin, withKey, `client.upscales(${files}${words})`);
  }
  return [
    "const form = new FormData();",
    `form.append("image", file); // a File, such as ${name}`,
    ...entries.map(([field, value]) => `form.append("${field}", ${JSON.stringify(String(value))});`),
    `const response = await fetch("${origin}/v1/upscales", {`,
    `  method: "POST",`,
    `  headers: { Prefer: "wait=60"${withKey ? ", Authorization: `Bearer ${process.env.REVERIE_KEY}`" : ""} },`,
    "  body: form,",
    "});",
    "if (!response.ok) throw new Error((await response.json()).detail);",
    "const picture = await response.blob();",
  ].join("\n");
}

function quoted(text: string): string {
  return /^[\w.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
