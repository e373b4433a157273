/** Samples of one model, drawn while a component shows them. */
import { useEffect, useState } from "preact/hooks";
import { type JobProgress, run } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Problem, Results } from "../../api/types";

export interface Samples {
  /** Of the request that is shown; null until it is there. */
  result: Results["samples"] | null;
  seconds: number;
  problem: Problem | null;
  progress: JobProgress | null;
  busy: boolean;
}

const NONE: Samples = { result: null, seconds: 0, problem: null, progress: null, busy: true };

/** Draws samples; the old ones stay until the new ones are there. `again` draws them once more when it changes. */
export function useSamples(ref: string, seed: number, count: number, again: number): Samples {
  const [samples, setSamples] = useState<Samples>(NONE);
  useEffect(() => {
    const abort = new AbortController();
    const update = (changes: Partial<Samples>) => {
      if (!abort.signal.aborted) setSamples((known) => ({ ...known, ...changes }));
    };
    update({ busy: true, progress: null });
    const started = performance.now();
    run("samples", { model: ref, seed, count }, { signal: abort.signal, onProgress: (progress) => update({ progress }) }).then(
      (result) => update({ result, seconds: (performance.now() - started) / 1000, problem: null, busy: false, progress: null }),
      (error: unknown) => update({ problem: problemOf(error), busy: false, progress: null }),
    );
    return () => abort.abort();
  }, [ref, seed, count, again]);
  return samples;
}
