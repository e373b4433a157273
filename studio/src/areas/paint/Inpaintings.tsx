/** The ways in which a model fills in what the mask hides. */
import { useEffect, useRef } from "preact/hooks";
import type { ImageSize, Model } from "../../api/types";
import { type Field, fieldsOf, type Value } from "../../components/form/fields";
import { SchemaForm } from "../../components/form/SchemaForm";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import type { Inpainter } from "./inpainting";

interface Props {
  models: readonly Model[];
  model: Model;
  inpainter: Inpainter;
  count: number;
  options: Readonly<Record<string, Value>>;
  onModel: (name: string) => void;
  onOption: (field: Field, value: Value) => void;
}

const SIDE = 84;

export function Inpaintings({ models, model, inpainter, count, options, onModel, onOption }: Props) {
  const fields = fieldsOf(model.operations.inpaintings?.options ?? {});
  const { progress, grid, problem } = inpainter;
  return (
    <section class="stack" aria-label="Inpaintings">
      <div class="row">
        <h2>Inpaintings</h2>
        {models.length > 1 && (
          <select aria-label="Model of the inpaintings" value={model.name} onChange={(event) => onModel(event.currentTarget.value)}>
            {models.map(({ name }) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        )}
        {progress.value && (
          <button type="button" onClick={() => inpainter.cancel()}>
            Cancel
          </button>
        )}
      </div>
      <ProblemLine problem={problem.value} shownFields={fields.map(({ name }) => name)} />
      <div class="inpainting-progress">{progress.value && <Progress value={progress.value.status === "queued" ? null : progress.value.progress} label="Inpainting" />}</div>
      {grid.value === null ? (
        <p class="muted">Paint over a part of the picture with the mask brush: {model.name} fills it in.</p>
      ) : (
        <ul class="inpaintings">
          {Array.from({ length: count }, (_, index) => (
            <li key={index}>
              <GridCell grid={grid.value} index={index} image={model.image} label={`Inpainting ${index + 1} of ${count}`} />
            </li>
          ))}
        </ul>
      )}
      {fields.length > 0 && (
        <details>
          <summary>Options of the chain</summary>
          <div class="inpainting-options">
            <SchemaForm fields={fields} values={options} problem={problem.value} onChange={onOption} />
          </div>
        </details>
      )}
    </section>
  );
}

/** One picture of a grid of pictures. */
function GridCell({ grid, index, image, label }: { grid: ImageBitmap | null; index: number; image: ImageSize; label: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { width, height } = image;
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context || grid === null) return;
    const columns = Math.max(1, Math.round(grid.width / width));
    context.drawImage(grid, (index % columns) * width, Math.floor(index / columns) * height, width, height, 0, 0, width, height);
  }, [grid]);
  const scale = Math.max(1, Math.floor(SIDE / width));
  return <canvas ref={canvas} class="pixelated" width={width} height={height} style={{ width: `${width * scale}px`, height: `${height * scale}px` }} role="img" aria-label={label} />;
}
