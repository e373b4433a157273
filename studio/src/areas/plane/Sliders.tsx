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
import { codeShape, decodingOf, formatChanges, isMeasured, layersOf, parseChanges, parseLayer, round, withChanges } from "./codes";
import { DecodedPicture } from "./DecodedPicture";
import { useDecoder } from "./decoder";
import { LayerChoice } from "./LayerChoice";
import { hasStates, type Start } from "./states";
import { useStart } from "./useStart";

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
  const { start, problem } = useStart(model, reference, layer, shape, seed);
  const last = useRef<{ layer: number; start: Start } | null>(null);
  if (start !== null) last.current = { layer, start };
  const shown = last.current?.layer === layer ? last.current.start : null; // the code before, until the new one is there
  const own = useRef<string | null>("");
  useEffect(() => {
    if (shape === null || start === null || own.current === (written ?? null)) return; // the hand has written it
    changes.value = parseChanges(written, shape);
    decoder.decode(withChanges(start.code, changes.value));
  }, [start, written, decoder]);
  const change = (index: number, value: number) => {
    if (start === null) return;
    changes.value = new Map(changes.peek()).set(index, value);
    decoder.decode(withChanges(start.code, changes.value));
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
  const code = withChanges(shown?.code ?? [], changes.value);
  const order = shown?.order ?? [];
  const scale = Math.max(1, Math.floor(Math.min(box.width / model.image.width, model.image.height === 1 ? Infinity : box.height / model.image.height)));
  return (
    <Workspace
      result={
        <>
          <ProblemLine problem={problem ?? decoder.problem.value} />
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
          <div class="form sliders" role="group" aria-label="Numbers of the code, those that matter most first" aria-busy={start === null}>
            {shown === null && problem === null && <p class="muted small">Looking for the numbers that change the picture most…</p>}
            {order.slice(0, all ? undefined : SHOWN).map((index) => (
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
          {order.length > SHOWN && (
            <button type="button" class="quiet" onClick={() => setAll(!all)}>
              {all ? "Show fewer" : `Show all ${order.length}`}
            </button>
          )}
          <p class="muted small">{orderNote(model, layer)}</p>
          <hr />
          {shown && <RequestCode operation="decodings" body={{ ...decodingOf(model, reference, layer), codes: [withChanges(shown.code, parseChanges(written, shape))] }} />}
        </>
      }
    />
  );
}

/** Returns why the sliders are in their order; nothing if there is no reason. */
function orderNote(model: Model, layer: number): string {
  if (hasStates(model)) return "In the order of how much each of them changes the picture.";
  return isMeasured(model, layer) && model.codes?.measure ? `In the order of the ${model.codes.measure}.` : "";
}
