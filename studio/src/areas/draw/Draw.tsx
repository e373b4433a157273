/** Draw: samples of a model. The address is the request; every change of it is drawn at once. */
import { untracked, useSignalEffect } from "@preact/signals";
import { fieldError } from "../../api/problem";
import type { Model } from "../../api/types";
import { Busy } from "../../components/Busy";
import { Empty } from "../../components/Empty";
import { Gallery } from "../../components/gallery/Gallery";
import { NoModel } from "../../components/NoModel";
import { ProblemLine } from "../../components/ProblemLine";
import { RemotePicture } from "../../components/RemotePicture";
import { Workspace } from "../../components/Workspace";
import { duration, number } from "../../lib/format";
import { address, setParams } from "../../router";
import { currentModel } from "../../state/service";
import { useShortcuts } from "../../state/shortcuts";
import { drawAgain, select, step } from "./actions";
import "./draw.css";
import { busy, cancel, draw, problem, progress, selection, shown } from "./drawings";
import { HistoryStrip } from "./HistoryStrip";
import { Options } from "./Options";
import { newSeed, optionFields, requestOf } from "./request";

export default function Draw() {
  useSignalEffect(() => {
    const model = currentModel.value;
    const { area, params } = address.value;
    if (model !== null && area === "draw") untracked(() => draw(model, requestOf(model, params)));
  });
  const model = currentModel.value;
  useShortcuts([
    { key: "r", label: "Draw again", run: drawAgain },
    { key: "n", label: "New seed", run: () => setParams({ seed: newSeed() }) },
    { key: "Escape", label: "Cancel what runs", run: cancel },
    { key: "ArrowLeft", label: "Previous picture", run: () => step(-1) },
    { key: "ArrowRight", label: "Next picture", run: () => step(1) },
  ]);
  if (model === null) return <NoModel title="No model can draw samples">Train one, or put a checkpoint into the service's folder of checkpoints.</NoModel>;
  const attention = shownFields(model).some((name) => fieldError(problem.value, name) !== null);
  return <Workspace result={<Result model={model} />} options={<Options model={model} />} strip={<HistoryStrip />} attention={attention} detail={selection.value} />;
}

function Result({ model }: { model: Model }) {
  const groups = shown.value.map((drawing) => ({
    key: drawing.id,
    title: `seed ${drawing.request.seed}`,
    detail: `${number(drawing.images.length)} in ${duration(drawing.seconds)}${drawing.repeated ? ", the same bytes again" : ""}`,
    images: drawing.images,
  }));
  const { count } = requestOf(model, address.value.params);
  const job = progress.value;
  const selected = selection.value;
  const empty = groups.length === 0;
  return (
    <>
      <Busy busy={busy.value} job={job} label={`Drawing ${number(count)} pictures`} onCancel={cancel} />
      <ProblemLine problem={problem.value} shownFields={empty ? [] : shownFields(model)} onRetry={drawAgain} />
      {empty && job !== null && job.previews > 0 && (
        <RemotePicture class="preview pixelated" path={`/v1/jobs/${job.id}/preview`} revision={job.previews} alt="The pictures so far" />
      )}
      {empty ? (
        !busy.value && <Empty title="Nothing drawn yet">Correct the options, or draw again.</Empty>
      ) : (
        <Gallery
          label={`Samples of ${model.name}`}
          groups={groups}
          picture={shown.value[0]?.image ?? model.image}
          selected={selected && { group: selected.drawing.id, index: selected.index }}
          onSelect={select}
        />
      )}
    </>
  );
}

/** Returns the names of the controls that show their own errors. */
function shownFields(model: Model): string[] {
  return ["count", "seed", ...optionFields(model).map(({ name }) => name)];
}
