/** Draw: samples of a model. The address is the request; every change of it is drawn at once. */
import { untracked, useSignalEffect } from "@preact/signals";
import type { Model } from "../../api/types";
import { Empty } from "../../components/Empty";
import { Gallery } from "../../components/gallery/Gallery";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { Workspace } from "../../components/Workspace";
import { duration } from "../../lib/format";
import { address, setParams } from "../../router";
import { currentModel, models } from "../../state/service";
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
  if (model === null) return <NoModel />;
  return <Workspace result={<Result model={model} />} options={<Options model={model} />} strip={<HistoryStrip />} />;
}

function NoModel() {
  const { data, problem: error } = models.state.value;
  if (error) return <ProblemLine problem={error} onRetry={() => void models.reload()} />;
  if (data === null) return null;
  return <Empty title="No model can draw samples">Train one, or put a checkpoint into the service's folder of checkpoints.</Empty>;
}

function Result({ model }: { model: Model }) {
  const shownFields = ["count", "seed", ...optionFields(model).map(({ name }) => name)];
  const groups = shown.value.map((drawing) => ({
    key: drawing.id,
    title: `seed ${drawing.request.seed}`,
    detail: `${drawing.images.length} in ${duration(drawing.seconds)}`,
    images: drawing.images,
  }));
  const selected = selection.value;
  return (
    <>
      <ProblemLine problem={problem.value} shownFields={shownFields} onRetry={drawAgain} />
      <div class={`draw-busy ${busy.value ? "draw-busy-on" : ""}`}>
        {progress.value && (
          <>
            <Progress value={progress.value.status === "queued" ? null : progress.value.progress} label="Drawing" />
            <button type="button" onClick={cancel}>
              Cancel
            </button>
          </>
        )}
      </div>
      <Gallery
        label={`Samples of ${model.name}`}
        groups={groups}
        picture={shown.value[0]?.image ?? model.image}
        selected={selected && { group: selected.drawing.id, index: selected.index }}
        onSelect={select}
      />
    </>
  );
}
