/** One slider for each number of a code that matters most, and the picture that follows them. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Model } from "../../api/types";
import { Icon } from "../../components/Icon";
import { ProblemLine } from "../../components/ProblemLine";
import { RequestCode } from "../../components/RequestCode";
import { Workspace } from "../../components/Workspace";
import { number } from "../../lib/format";
import { address, setParams } from "../../router";
import { useBox } from "../../state/box";
import { useShortcuts } from "../../state/shortcuts";
import { useDebounce } from "../../state/timing";
import { codeOf, codeShape, decodingOf, formatChanges, isMeasured, type Layers, layersOf, parseChanges, parseLayer, round, withChanges } from "./codes";
import { DecodedPicture } from "./DecodedPicture";
import { useDecoder } from "./decoder";

const SHOWN = 12;

export function Sliders({ model, reference }: { model: Model; reference: string }) {
  const { params } = address.value;
  const layers = layersOf(model);
  const layer = parseLayer(params.get("layer"), layers);
  const shape = codeShape(model, layer);
  const seed = params.has("seed") ? Number(params.get("seed")) : null;
  const written = params.get("z");
  const [all, setAll] = useState(false);
  const changes = useSignal<ReadonlyMap<number, number>>(new Map());
  const decoder = useDecoder(model, reference, layer);
  const debounce = useDebounce(300);
  const area = useRef<HTMLDivElement>(null);
  const box = useBox(area);
  const base = shape === null ? [] : codeOf(shape, seed);
  const own = useRef<string | null>("");
  useEffect(() => {
    if (shape === null || own.current === (written ?? null)) return; // the hand has written it
    changes.value = parseChanges(written, shape);
    decoder.decode(withChanges(base, changes.value));
  }, [seed, written, decoder]);
  const change = (index: number, value: number) => {
    changes.value = new Map(changes.peek()).set(index, value);
    decoder.decode(withChanges(base, changes.value));
    debounce.call(() => {
      own.current = formatChanges(changes.peek());
      setParams({ z: own.current }, { replace: true });
    });
  };
  const begin = (next: number | null, params: Record<string, number> = {}) => {
    own.current = "";
    setParams({ seed: next, z: null, ...params });
  };
  const restart = () => begin(Math.floor(Math.random() * 1e9));
  useShortcuts([{ key: "n", label: "New code", run: restart }]);
  if (shape === null) return null;
  const code = withChanges(base, changes.value);
  const scale = Math.max(1, Math.floor(Math.min(box.width / model.image.width, model.image.height === 1 ? Infinity : box.height / model.image.height)));
  return (
    <Workspace
      result={
        <>
          <ProblemLine problem={decoder.problem.value} />
          <div class="sliders-area" ref={area}>
            {box.width > 0 && <DecodedPicture decoder={decoder} image={model.image} scale={Math.min(scale, 20)} label={`Picture of a code of ${model.name}`} />}
          </div>
        </>
      }
      options={
        <>
          <div class="buttons">
            <button type="button" class="primary" title="New code (N)" onClick={restart}>
              <Icon name="dice" />
              New
            </button>
            <button type="button" disabled={seed === null && changes.value.size === 0} onClick={() => begin(null)}>
              Reset
            </button>
          </div>
          {layers && <LayerChoice layers={layers} layer={layer} onChoose={(chosen) => begin(seed, { layer: chosen })} />}
          <div class="form sliders" role="group" aria-label={isMeasured(model, layer) ? "Numbers of the code, the most active ones first" : "Numbers of the code"}>
            {shape.active.slice(0, all ? undefined : SHOWN).map((index) => (
              <label key={index} class="slider">
                <span class="field-name">z{index}</span>
                <input
                  type="range"
                  aria-label={`z${index}`}
                  min={shape.minimum}
                  max={shape.maximum}
                  step={0.01}
                  value={code[index]}
                  onInput={(event) => change(index, round(Number(event.currentTarget.value)))}
                />
                <output class="slider-value">{number(code[index] ?? 0, 3)}</output>
              </label>
            ))}
          </div>
          {shape.active.length > SHOWN && (
            <button type="button" class="quiet" onClick={() => setAll(!all)}>
              {all ? "Show fewer" : `Show all ${shape.active.length}`}
            </button>
          )}
          <p class="muted small">{isMeasured(model, layer) && model.codes?.measure ? `In the order of the ${model.codes.measure}.` : ""}</p>
          <hr />
          <RequestCode operation="decodings" body={{ ...decodingOf(model, reference, layer), codes: [withChanges(base, parseChanges(written, shape))] }} />
        </>
      }
    />
  );
}

interface LayerChoiceProps {
  layers: Layers;
  layer: number;
  onChoose: (layer: number) => void;
}

function LayerChoice({ layers: { option, sizes }, layer, onChoose }: LayerChoiceProps) {
  return (
    <label class="field">
      <span class="field-name">{option}</span>
      <select value={String(layer)} onChange={(event) => onChoose(Number(event.currentTarget.value))}>
        {sizes.map((size, index) => (
          <option key={index} value={String(index)}>
            {index}: {size} numbers{index === 0 ? ", the lowest" : ""}
          </option>
        ))}
      </select>
      <p class="muted small">The layers below it are drawn, with the same seed for each picture.</p>
    </label>
  );
}
