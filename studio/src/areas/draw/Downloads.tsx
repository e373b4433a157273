/** Saves a drawing: PNG and NPZ come from the service, which makes the same pictures again; ZIP is packed here. */
import { useState } from "preact/hooks";
import { runForFile } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Problem } from "../../api/types";
import { ProblemLine } from "../../components/ProblemLine";
import { save, zipOf } from "../../lib/files";
import type { Drawing } from "./drawings";
import { bodyOf } from "./request";

const FORMATS = { PNG: "image/png", NPZ: "application/x-npz", ZIP: null } as const;
type Format = keyof typeof FORMATS;

export function Downloads({ drawing }: { drawing: Drawing }) {
  const [running, setRunning] = useState<Format | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const name = `${drawing.request.model}-${drawing.request.seed}`;
  const download = async (format: Format) => {
    setRunning(format);
    setProblem(null);
    try {
      save(await fileOf(drawing, format, name), `${name}.${format.toLowerCase()}`);
    } catch (error) {
      setProblem(problemOf(error));
    }
    setRunning(null);
  };
  return (
    <section class="stack" aria-label="Download">
      <div class="row">
        <span class="section-name">Download</span>
        <div class="buttons">
          {(Object.keys(FORMATS) as Format[]).map((format) => (
            <button key={format} type="button" disabled={running !== null} onClick={() => void download(format)}>
              {format}
            </button>
          ))}
        </div>
      </div>
      <ProblemLine problem={problem} />
    </section>
  );
}

async function fileOf(drawing: Drawing, format: Format, name: string): Promise<Blob> {
  const accept = FORMATS[format];
  if (accept === null) return zipOf(drawing.images, name);
  return runForFile("samples", bodyOf(drawing.request, drawing.version), accept, { signal: AbortSignal.timeout(600_000) });
}
