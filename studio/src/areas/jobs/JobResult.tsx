/** What can be done with the result of a job: look at its pictures, and save it as a file. */
import { problemOf } from "../../api/problem";
import { request } from "../../api/send";
import type { Job, Problem } from "../../api/types";
import { save } from "../../lib/files";

/** Kinds whose results are pictures, or arrays. */
const PICTURES = new Set(["samples", "manifold", "decodings", "reconstructions", "interpolations", "inpaintings", "upscales"]);
const ARRAYS = new Set(["encodings", "energies", "likelihoods"]);

interface Props {
  job: Job;
  /** The blob URL of the picture that is shown; null while none is. */
  picture: string | null;
  onPicture: (url: string | null) => void;
  onProblem: (problem: Problem | null) => void;
}

export function JobResult({ job, picture, onPicture, onProblem }: Props) {
  const fetchAs = async (accept: string, use: (file: Blob) => void) => {
    onProblem(null);
    try {
      use(await (await request(`/v1/jobs/${job.id}/result`, { headers: { Accept: accept } })).blob());
    } catch (error) {
      onProblem(problemOf(error));
    }
  };
  const toggle = () => {
    if (picture === null) void fetchAs("image/png", (file) => onPicture(URL.createObjectURL(file)));
    else {
      URL.revokeObjectURL(picture);
      onPicture(null);
    }
  };
  const download = (name: string, accept: string) => (
    <button type="button" onClick={() => void fetchAs(accept, (file) => save(file, `${job.id}.${name.toLowerCase()}`))}>
      {name}
    </button>
  );
  const hasPictures = PICTURES.has(job.kind);
  if (job.kind === "training") return <a href={`/train?run=${job.id}`}>Open the training</a>;
  if (!hasPictures && !ARRAYS.has(job.kind)) return null;
  return (
    <>
      {hasPictures && (
        <button type="button" aria-expanded={picture !== null} onClick={toggle}>
          {picture === null ? "Show" : "Hide"}
        </button>
      )}
      {hasPictures && download("PNG", "image/png")}
      {job.kind !== "upscales" && download("NPZ", "application/x-npz")}
      {!hasPictures && download("JSON", "application/json")}
    </>
  );
}
