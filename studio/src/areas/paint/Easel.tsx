/** The picture that is painted, its tools, and the inpaintings of its mask. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { problemOf } from "../../api/problem";
import type { Model, Problem } from "../../api/types";
import { type Field, fieldsOf, formatValue, parseValue, type Value } from "../../components/form/fields";
import type { Painting } from "../../components/paint/painting";
import { PaintGrid } from "../../components/paint/PaintGrid";
import { pixelsOfFile, pngOf } from "../../components/paint/picture";
import { isBlank } from "../../components/paint/pixels";
import { ProblemLine } from "../../components/ProblemLine";
import { Newest } from "../../lib/newest";
import { address, setParams } from "../../router";
import { useShortcuts } from "../../state/shortcuts";
import { Inpainter } from "./inpainting";
import { Inpaintings } from "./Inpaintings";
import { type Tool, Tools, TOOLS } from "./Tools";

const SIDE = 280;
const SEED = 1;
const COUNT = 8;

export function Easel({ painting, models }: { painting: Painting; models: readonly Model[] }) {
  const { width, height } = painting.pixels.value;
  const [tool, setTool] = useState<Tool>("brush");
  const [radius, setRadius] = useState(Math.max(0.6, width / 26));
  const [problem, setProblem] = useState<Problem | null>(null);
  const inpainter = useMemo(() => new Inpainter(), []);
  const able = models.filter(({ operations }) => "inpaintings" in operations);
  const { params } = address.value;
  const model = able.find(({ name }) => name === params.get("model")) ?? able[0];
  const options = optionsOf(model, params);
  const [pixels, mask] = [painting.pixels.value, painting.mask.value];
  useEffect(() => {
    if (model === undefined) return;
    if (isBlank(mask)) inpainter.clear();
    else inpainter.submit({ model: model.name, seed: SEED, count: COUNT, images: [pngOf(pixels)], mask: pngOf(mask), options });
  }, [pixels, mask, model, JSON.stringify(options)]);
  useEffect(() => () => inpainter.cancel(), [inpainter]);
  useShortcuts([
    { key: "z", label: "Undo", run: () => painting.undo() },
    { key: "b", label: "Brush", run: () => setTool("brush") },
    { key: "e", label: "Eraser", run: () => setTool("eraser") },
    { key: "m", label: "Mask brush", run: () => setTool("mask") },
    { key: "Escape", label: "Cancel what runs", run: () => inpainter.cancel() },
  ]);
  const loads = useMemo(() => new Newest(), []);
  const load = async (file: File) => {
    const isNewest = loads.start();
    try {
      const loaded = await pixelsOfFile(file, { width, height });
      if (!isNewest()) return;
      painting.replace("pixels", loaded);
      setProblem(null);
    } catch (error) {
      if (isNewest()) setProblem(problemOf(error));
    }
  };
  const masks = tool === "mask" || tool === "unmask";
  const brush = { radius, erases: tool === "eraser" || tool === "unmask", hard: masks };
  return (
    <section class="easel" aria-label="Picture">
      <ProblemLine problem={problem} />
      <PaintGrid label={`Picture of ${width} × ${height} pixels`} painting={painting} layer={masks ? "mask" : "pixels"} brush={brush} cell={Math.floor(SIDE / width)} />
      <Tools painting={painting} tools={model ? TOOLS : TOOLS.slice(0, 2)} tool={tool} onTool={setTool} radius={radius} onRadius={setRadius} onFile={(file) => void load(file)} />
      {model && (
        <Inpaintings
          models={able}
          model={model}
          inpainter={inpainter}
          count={COUNT}
          options={options}
          onModel={(name) => setParams({ model: name })}
          onOption={(field, value) => setParams({ [field.name]: formatValue(field, value) }, { replace: true })}
        />
      )}
    </section>
  );
}

/** Returns the options of inpaintings that the address names. */
function optionsOf(model: Model | undefined, params: ReadonlyMap<string, string>): Record<string, Value> {
  const fields: Field[] = fieldsOf(model?.operations.inpaintings?.options ?? {});
  return Object.fromEntries(fields.filter(({ name }) => params.has(name)).map((field) => [field.name, parseValue(field, params.get(field.name))]));
}
