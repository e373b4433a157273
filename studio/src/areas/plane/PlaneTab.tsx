/** The latent plane: a code of two numbers, its place on the manifold, and its picture. */
import { type ReadonlySignal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { fieldError } from "../../api/problem";
import type { Model } from "../../api/types";
import { NumberBox } from "../../components/form/NumberBox";
import { ProblemLine } from "../../components/ProblemLine";
import { RequestCode } from "../../components/RequestCode";
import { Workspace } from "../../components/Workspace";
import { address, setParams } from "../../router";
import { useShortcuts } from "../../state/shortcuts";
import { useDebounce } from "../../state/timing";
import { decodingOf, parseCode, round } from "./codes";
import { DecodedPicture } from "./DecodedPicture";
import { type Decoder, useDecoder } from "./decoder";
import { Manifold } from "./Manifold";
import { probability, quantile } from "./normal";

interface Props {
  model: Model;
  reference: string;
}

const NAMES = ["z₁", "z₂"];
const FIELDS = ["codes.0.0", "codes.0.1"];
const STEP = 0.01;
const EDGE = 0.002;
const LARGE = 8;

export function PlaneTab({ model, reference }: Props) {
  const asked = parseCode(address.value.params.get("z"), 2) ?? [0, 0];
  const code = useSignal(asked);
  const decoder = useDecoder(model, reference);
  const debounce = useDebounce(300);
  const written = useRef("");
  const show = (next: number[], at?: number) => {
    code.value = next;
    decoder.decode(next, at);
    debounce.call(() => {
      written.current = next.join();
      setParams({ z: next.every((value) => value === 0) ? null : written.current }, { replace: true });
    });
  };
  useEffect(() => {
    if (written.current === asked.join()) return; // the hand, which may be further already, has written it
    code.value = asked;
    decoder.decode(asked);
  }, [asked.join(), decoder]);
  const nudge = (right: number, down: number) => show([moved(code.peek()[0], right), moved(code.peek()[1], down)]);
  useShortcuts([
    { key: "ArrowLeft", label: "Move left", run: () => nudge(-STEP, 0) },
    { key: "ArrowRight", label: "Move right", run: () => nudge(STEP, 0) },
    { key: "ArrowUp", label: "Move up", run: () => nudge(0, -STEP) },
    { key: "ArrowDown", label: "Move down", run: () => nudge(0, STEP) },
  ]);
  const problem = decoder.problem.value;
  return (
    <Workspace
      result={
        <>
          <ProblemLine problem={problem} shownFields={FIELDS} />
          <Manifold model={model} reference={reference} code={code} decoder={decoder} onMove={show} />
        </>
      }
      options={
        <>
          <CodeNumbers code={code} decoder={decoder} onChange={show} />
          <DecodedPicture decoder={decoder} image={model.image} scale={LARGE} label="The decoded picture, enlarged" />
          <Age decoder={decoder} />
          <hr />
          <RequestCode operation="decodings" body={{ ...decodingOf(model, reference), codes: [asked] }} />
        </>
      }
    />
  );
}

interface NumbersProps {
  code: ReadonlySignal<number[]>;
  decoder: Decoder;
  onChange: (code: number[]) => void;
}

/** The numbers of the code, and what the service says is wrong with them. */
function CodeNumbers({ code, decoder, onChange }: NumbersProps) {
  const change = (index: number, value: number) => onChange(code.peek().map((old, other) => (other === index ? value : old)));
  return (
    <div class="plane-numbers">
      {NAMES.map((name, index) => {
        const error = fieldError(decoder.problem.value, FIELDS[index] ?? "");
        return (
          <div key={name} class="field">
            <label class="field-name" for={`z${index}`}>
              {name}
            </label>
            <NumberBox id={`z${index}`} value={code.value[index] ?? 0} integer={false} invalid={error !== null} onChange={(entered) => change(index, entered ?? 0)} />
            {error && (
              <p class="field-error" role="alert">
                {error}
              </p>
            )}
          </div>
        );
      })}
    </div>
  );
}

function Age({ decoder }: { decoder: Decoder }) {
  const age = decoder.age.value;
  return <p class="muted small">{age === null ? "Drag over the plane, or use the arrow keys." : `Shown ${Math.max(1, Math.round(age))} ms after the hand moved.`}</p>;
}

/** Returns the number of a code that lies a part of the plane's side further. */
function moved(value: number | undefined, by: number): number {
  if (by === 0) return value ?? 0;
  return round(quantile(Math.min(Math.max(probability(value ?? 0) + by, EDGE), 1 - EDGE)));
}
