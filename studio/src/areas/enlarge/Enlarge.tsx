/** Enlarge: a photograph, before and after under one divider, or several methods side by side. */
import { untracked, useSignalEffect } from "@preact/signals";
import { useEffect } from "preact/hooks";
import type { Model } from "../../api/types";
import { NoModel } from "../../components/NoModel";
import { ProblemLine } from "../../components/ProblemLine";
import { Workspace } from "../../components/Workspace";
import { address } from "../../router";
import { currentModel } from "../../state/service";
import { useShortcuts } from "../../state/shortcuts";
import { useDebounce } from "../../state/timing";
import { DropZone, takeFile } from "./DropZone";
import "./enlarge.css";
import { cancel, enlarge, photograph, problem } from "./enlargements";
import { Options } from "./Options";
import { methodsOf, optionsOf } from "./request";
import { Views } from "./Views";

/** A slider is followed when it rests: an enlargement takes seconds. */
const REST_MS = 400;

export default function Enlarge() {
  const model = currentModel.value;
  if (model === null) return <NoModel title="No model enlarges pictures">Train a model for super-resolution.</NoModel>;
  return <EnlargeWith key={model.name} model={model} />;
}

function EnlargeWith({ model }: { model: Model }) {
  const debounce = useDebounce(REST_MS);
  const version = address.value.params.get("version");
  const reference = version === undefined ? model.name : `${model.name}@${version}`;
  const { params } = address.value;
  const run = (again = false) => enlarge({ model: reference, methods: methodsOf(model, params), options: optionsOf(model, params) }, { again });
  const wanted = JSON.stringify([reference, methodsOf(model, params), optionsOf(model, params)]);
  useSignalEffect(() => {
    if (photograph.value !== null) untracked(() => run());
  });
  useEffect(() => {
    if (photograph.peek() !== null) debounce.call(() => run());
  }, [wanted]);
  useEffect(() => {
    const onPaste = (event: ClipboardEvent) => {
      if (event.target instanceof HTMLInputElement) return;
      event.preventDefault();
      takeFile(event.clipboardData);
    };
    addEventListener("paste", onPaste);
    return () => removeEventListener("paste", onPaste);
  }, []);
  useShortcuts([
    { key: "r", label: "Enlarge again", run: () => run(true) },
    { key: "Escape", label: "Cancel what runs", run: cancel },
  ]);
  return (
    <Workspace
      result={
        <>
          <ProblemLine problem={problem.value} />
          {photograph.value === null ? <DropZone /> : <Views photograph={photograph.value} methods={methodsOf(model, params)} />}
        </>
      }
      options={<Options model={model} reference={reference} />}
    />
  );
}
