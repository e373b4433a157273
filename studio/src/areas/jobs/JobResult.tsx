/** The result of a job: its pictures to look at, and files to save. */
import { useState } from "preact/hooks";
import { problemOf } from "../../api/problem";
import { request } from "../../api/send";
import type { Job, Problem } from "../../api/types";
import { ProblemLine } from "../../components/ProblemLine";
import { save } from "../../lib/files";

/** Kinds whose results are pictures, or arrays. */
const PICTURES = new Set(["samples", "manifold", "reconstructions", "interpolations", "inpaintings", "upscales"]);
const ARRAYS = new Set([...PICTURES, "encodings", "energies", "likelihoods"]);

export function JobResult({ job }: { job: Job }) {
  const [url, setUrl] = useState<string | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const fetchAs = async (accept: string, use: (file: Blob) => void) => {
    setProblem(null);
    try {
      use(await (await request(`/v1/jobs/${job.id}/result`, { headers: { Accept: accept } })).blob());
    } catch (error) {
      setProblem(problemOf(error));
    }
  };
  if (job.kind === "training") return <a href={`/train?run=${job.id}`}>Open the training</a>;
  if (!ARRAYS.has(job.kind)) return null;
  return (
    <div class="stack">
      <div class="buttons">
        {PICTURES.has(job.kind) && (
          <button type="button" aria-expanded={url !== null} onClick={() => (url === null ? void fetchAs("image/png", (file) => setUrl(URL.createObjectURL(file))) : setUrl(null))}>
            {url === null ? "Show" : "Hide"}
          </button>
        )}
        {PICTURES.has(job.kind) && (
          <button type="button" onClick={() => void fetchAs("image/png", (file) => save(file, `${job.id}.png`))}>
            PNG
          </button>
        )}
        {job.kind !== "upscales" && (
          <button type="button" onClick={() => void fetchAs("application/x-npz", (file) => save(file, `${job.id}.npz`))}>
            NPZ
          </button>
        )}
        <button type="button" onClick={() => void fetchAs("application/json", (file) => save(file, `${job.id}.json`))}>
          JSON
        </button>
      </div>
      <ProblemLine problem={problem} />
      {url !== null && <img class="job-picture pixelated" src={url} alt={`Result of ${job.kind}`} />}
    </div>
  );
}
