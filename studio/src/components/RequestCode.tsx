/** The request behind a result, to copy as curl, Python or TypeScript. */
import { useState } from "preact/hooks";
import { key } from "../api/key";
import { LANGUAGES, type Language, snippet, type SnippetRequest } from "../lib/snippets";
import { useShortcuts } from "../state/shortcuts";
import { Segmented } from "./form/Segmented";

interface Props {
  operation: string;
  body: Record<string, unknown>;
  /** Writes a request that is no JSON body. */
  write?: (language: Language, request: SnippetRequest) => string;
}

export function RequestCode({ operation, body, write = snippet }: Props) {
  const [language, setLanguage] = useState<Language>("curl");
  const [copied, setCopied] = useState(false);
  const text = write(language, { operation, body, origin: location.origin, withKey: key.value !== null });
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  useShortcuts([{ key: "c", label: "Copy the request", run: () => void copy() }]);
  return (
    <section class="stack" aria-label="Request">
      <div class="row">
        <Segmented label="Language" choices={LANGUAGES} value={language} onChange={(chosen) => setLanguage(chosen as Language)} />
        <button type="button" onClick={() => void copy()} aria-live="polite">
          {copied ? "Copied" : "Copy"}
        </button>
      </div>
      <pre class="code" tabIndex={0} aria-label={`The request in ${language}`}>
        {text}
      </pre>
    </section>
  );
}
