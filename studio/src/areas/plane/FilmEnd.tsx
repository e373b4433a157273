/** The first or the last picture of a film: painted, or loaded from a file. */
import { useMemo } from "preact/hooks";
import { problemOf } from "../../api/problem";
import type { Problem } from "../../api/types";
import { LoadButton } from "../../components/paint/LoadButton";
import "../../components/paint/paint-grid.css";
import { PaintGrid } from "../../components/paint/PaintGrid";
import type { Painting } from "../../components/paint/painting";
import { pixelsOfFile } from "../../components/paint/picture";
import { Newest } from "../../lib/newest";

interface Props {
  name: string;
  painting: Painting;
  onProblem: (problem: Problem | null) => void;
}

const CELL = 5;

export function FilmEnd({ name, painting, onProblem }: Props) {
  const size = painting.pixels.value;
  const brush = { radius: Math.max(0.6, size.width / 26), erases: false, hard: false };
  const loads = useMemo(() => new Newest(), []);
  const load = async (file: File) => {
    const isNewest = loads.start();
    try {
      const pixels = await pixelsOfFile(file, { width: size.width, height: size.height });
      if (!isNewest()) return;
      painting.replace("pixels", pixels);
      onProblem(null);
    } catch (error) {
      if (isNewest()) onProblem(problemOf(error));
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
