/** The samples of one of the compared models. */
import { useEffect } from "preact/hooks";
import type { Model } from "../../api/types";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { duration } from "../../lib/format";
import { PictureGrid } from "./PictureGrid";
import { useSamples } from "./useSamples";

interface Props {
  model: Model;
  /** The model, or its version. */
  reference: string;
  seed: number;
  count: number;
  again: number;
  /** Stands for the name while that is hidden. */
  letter: string | null;
  /** Called with the version that drew the samples. */
  onVersion: (version: string) => void;
}

export function Column({ model, reference, seed, count, again, letter, onVersion }: Props) {
  const { result, seconds, problem, progress, busy } = useSamples(reference, seed, count, again);
  const name = letter ?? (result === null ? reference : `${model.name}@${result.version}`);
  useEffect(() => {
    if (result !== null) onVersion(result.version);
  }, [result]);
  return (
    <section class="column" aria-label={name} aria-busy={busy}>
      <div class="column-head">
        <h2>{name}</h2>
        {letter === null && <p class="muted">{result === null ? "" : `${result.images.length} in ${duration(seconds)}`}</p>}
      </div>
      {progress && <Progress value={progress.progress} label={`Progress of ${name}`} />}
      <ProblemLine problem={problem} />
      {result && <PictureGrid images={result.images} picture={model.image} label={`${result.images.length} samples of ${name}, seed ${seed}`} />}
    </section>
  );
}
