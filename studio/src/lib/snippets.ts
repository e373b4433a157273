/** A request as text that can be pasted elsewhere: curl, Python, TypeScript. A key is named, never shown. */

export type Language = "curl" | "Python" | "TypeScript";

export const LANGUAGES: readonly Language[] = ["curl", "Python", "TypeScript"];

export interface SnippetRequest {
  /** The last part of the operation's path, such as `samples`. */
  operation: string;
  body: Record<string, unknown>;
  /** Address of the service, such as `http://127.0.0.1:8000`. */
  origin: string;
  /** Whether the service wants a key. */
  withKey: boolean;
}

/** Returns the request in a language. */
export function snippet(language: Language, request: SnippetRequest): string {
  if (language === "curl") return curl(request);
  return language === "Python" ? python(request) : typescript(request);
}

function curl({ operation, body, origin, withKey }: SnippetRequest): string {
  const lines = [
    "curl -sS --fail-with-body",
    `${origin}/v1/${operation}`,
    ...(withKey ? [`-H "Authorization: Bearer $REVERIE_KEY"`] : []),
    `-H 'Content-Type: application/json'`,
    `-H 'Accept: image/png'`,
    `-d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`,
    `-o ${operation}.png`,
  ];
  return lines.join(" \\\n  ");
}

function python({ operation, body, origin, withKey }: SnippetRequest): string {
  const { model, options, ...fields } = body;
  const named = { ...fields, ...(options as Record<string, unknown> | undefined) };
  const words = [pythonLiteral(model), ...Object.entries(named).map(([name, value]) => `${name}=${pythonLiteral(value)}`)];
  return pythonCall(origin, withKey, `result = client.${operation}(${words.join(", ")})`);
}

/** Returns a Python program that opens a client and runs one statement. */
export function pythonCall(origin: string, withKey: boolean, statement: string): string {
  const key = withKey ? `, key=os.environ["REVERIE_KEY"]` : "";
  return [
    ...(withKey ? ["import os", ""] : []),
    "from reverie import Client",
    "",
    `with Client("${origin}"${key}) as client:`,
    `    ${statement}`,
  ].join("\n");
}

function typescript({ operation, body, origin, withKey }: SnippetRequest): string {
  const key = withKey ? ", Authorization: `Bearer ${process.env.REVERIE_KEY}`" : "";
  return [
    `const response = await fetch("${origin}/v1/${operation}", {`,
    `  method: "POST",`,
    `  headers: { "Content-Type": "application/json"${key} },`,
    `  body: JSON.stringify(${JSON.stringify(body)}),`,
    "});",
    "if (!response.ok) throw new Error((await response.json()).detail);",
    "const { images } = await response.json(); // PNGs as base64",
  ].join("\n");
}

export function pythonLiteral(value: unknown): string {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  return JSON.stringify(value);
}
