/** A film between two pictures, painted or loaded: the frames of an interpolation, forwards and backwards. */
import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { Latest } from "../../api/latest";
import { run } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Model, Problem } from "../../api/types";
import { NumberBox } from "../../components/form/NumberBox";
import { Painting } from "../../components/paint/painting";
import { pngOf } from "../../components/paint/picture";
import { digit, isBlank } from "../../components/paint/pixels";
import { ProblemLine } from "../../components/ProblemLine";
import { Workspace } from "../../components/Workspace";
import { save, zipOf } from "../../lib/files";
import { address, setParams } from "../../router";
import { useDebounce } from "../../state/timing";
import { SEED } from "./codes";
import { FilmEnd } from "./FilmEnd";
import { FilmPlayer } from "./FilmPlayer";

const STEPS = 32;

interface Ends {
  images: [string, string];
  steps: number;
}

export function Film({ model, reference }: { model: Model; reference: string }) {
  const ends = useMemo(() => [new Painting(model.image, digit("2", model.image)), new Painting(model.image, digit("7", model.image))] as const, [model.name]);
  const steps = Number(address.value.params.get("steps") ?? STEPS);
  const frames = useSignal<readonly string[]>([]);
  const problem = useSignal<Problem | null>(null);
  const debounce = useDebounce(120);
  const latest = useMemo(
    () =>
      new Latest<Ends>(async ({ images, steps: count }, abort) => {
        try {
          const body = { model: reference, seed: SEED, images, options: { steps: count } };
          frames.value = (await run("interpolations", body, { signal: abort })).images;
          problem.value = null;
        } catch (error) {
          problem.value = problemOf(error);
        }
      }),
    [reference],
  );
  useEffect(() => () => latest.cancel(), [latest]);
  const [first, second] = [ends[0].pixels.value, ends[1].pixels.value];
  const empty = isBlank(first) || isBlank(second);
  useEffect(() => {
    if (!empty) debounce.call(() => latest.submit({ images: [pngOf(first), pngOf(second)], steps }));
  }, [first, second, steps, latest]);
  return (
    <Workspace
      result={
        <>
          <ProblemLine problem={problem.value} />
          <FilmPlayer frames={frames.value} image={model.image} />
        </>
      }
      options={
        <>
          <FilmEnd name="First picture" painting={ends[0]} onProblem={(found) => (problem.value = found)} />
          <FilmEnd name="Last picture" painting={ends[1]} onProblem={(found) => (problem.value = found)} />
          {empty && <p class="field-error">Paint or load both pictures.</p>}
          <div class="field">
            <label class="field-name" for="steps">
              frames
            </label>
            <NumberBox id="steps" class="number-box" value={steps} integer minimum={2} maximum={256} invalid={false} onChange={(entered) => setParams({ steps: entered }, { replace: true })} />
          </div>
          <div class="row">
            <span class="section-name">Download</span>
            <button type="button" disabled={frames.value.length === 0} onClick={() => void zipOf(frames.value, model.name).then((file) => save(file, `${model.name}-film.zip`))}>
              ZIP of the frames
            </button>
          </div>
        </>
      }
    />
  );
}
