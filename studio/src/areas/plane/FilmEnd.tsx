/** The first or the last picture of a film: painted, or loaded from a file. */
import { problemOf } from "../../api/problem";
import type { Problem } from "../../api/types";
import { LoadButton } from "../../components/paint/LoadButton";
import "../../components/paint/paint-grid.css";
import { PaintGrid } from "../../components/paint/PaintGrid";
import type { Painting } from "../../components/paint/painting";
import { pixelsOfFile } from "../../components/paint/picture";

interface Props {
  name: string;
  painting: Painting;
  onProblem: (problem: Problem | null) => void;
}

const CELL = 5;

export function FilmEnd({ name, painting, onProblem }: Props) {
  const size = painting.pixels.value;
  const brush = { radius: Math.max(0.6, size.width / 26), erases: false, hard: false };
  const load = async (file: File) => {
    try {
      painting.replace("pixels", await pixelsOfFile(file, { width: size.width, height: size.height }));
      onProblem(null);
    } catch (error) {
      onProblem(problemOf(error));
    }
  };
  return (
    <section class="stack" aria-label={name}>
      <span class="section-name">{name}</span>
      <div class="film-end">
        <PaintGrid label={name} painting={painting} brush={brush} cell={CELL} />
        <div class="stack">
          <LoadButton label="Load…" onFile={(file) => void load(file)} />
          <button type="button" onClick={() => painting.clear()}>
            Clear
          </button>
          <button type="button" disabled={painting.undoable.value === 0} onClick={() => painting.undo()}>
            Undo
          </button>
        </div>
      </div>
    </section>
  );
}
