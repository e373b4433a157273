/** Plane: codes and their pictures. A plane to drag over, sliders for single numbers, a film between two pictures. */
import type { Model } from "../../api/types";
import { Segmented } from "../../components/form/Segmented";
import { NoModel } from "../../components/NoModel";
import { address, setParams } from "../../router";
import { currentModel } from "../../state/service";
import { Film } from "./Film";
import { PlaneTab } from "./PlaneTab";
import "./plane.css";
import { Sliders } from "./Sliders";

const TABS = { plane: "manifold", sliders: "decodings", film: "interpolations" } as const;
type Tab = keyof typeof TABS;

export default function Plane() {
  const model = currentModel.value;
  if (model === null) {
    return <NoModel title="No model decodes codes">Train a VAE: its codes can be explored here.</NoModel>;
  }
  const tabs = (Object.keys(TABS) as Tab[]).filter((tab) => TABS[tab] in model.operations);
  const asked = address.value.params.get("tab");
  const tab = tabs.find((name) => name === asked) ?? tabs[0] ?? "sliders";
  return (
    <div class="plane">
      <div class="plane-tabs">
        <Segmented label="View" choices={tabs} value={tab} onChange={(chosen) => setParams({ tab: chosen === tabs[0] ? null : chosen, z: null })} />
      </div>
      <Shown key={`${tab} ${referenceOf(model)}`} tab={tab} model={model} />
    </div>
  );
}

function Shown({ tab, model }: { tab: Tab; model: Model }) {
  const reference = referenceOf(model);
  if (tab === "plane") return <PlaneTab model={model} reference={reference} />;
  if (tab === "sliders") return <Sliders model={model} reference={reference} />;
  return <Film model={model} reference={reference} />;
}

/** Returns the model as requests name it: with the version of the address, if it has one. */
function referenceOf(model: Model): string {
  const version = address.value.params.get("version");
  return version === undefined ? model.name : `${model.name}@${version}`;
}
