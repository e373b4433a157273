/** One dataset: what was found, how it was split, and its pictures page by page. */
import { useState } from "preact/hooks";
import { client, get } from "../../api/client";
import { problemOf } from "../../api/problem";
import type { Dataset, Problem } from "../../api/types";
import { Confirm } from "../../components/Dialog";
import { Segmented } from "../../components/form/Segmented";
import { ProblemLine } from "../../components/ProblemLine";
import { number } from "../../lib/format";
import { address, go, setParams } from "../../router";
import { datasets } from "../../state/datasets";
import { factsOf, type Split, SPLITS } from "./facts";
import { PicturePage } from "./PicturePage";

export function DatasetDetail({ dataset }: { dataset: Dataset }) {
  const [asking, setAsking] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const { name, counts } = dataset;
  const split = SPLITS.find((one) => one === address.value.params.get("split")) ?? "train";
  const labelOf = (one: Split) => `${one} ${number(counts[one])}`;
  const remove = async () => {
    try {
      await get(client.DELETE("/v1/datasets/{name}", { params: { path: { name } } }));
      datasets.state.value = { data: (datasets.data ?? []).filter((one) => one.name !== name), problem: null }; // no card asks for its pictures
      go("data");
      await datasets.reload();
    } catch (error) {
      setProblem(problemOf(error));
    }
  };
  return (
    <>
      <div class="dataset-head">
        <a href="/data">All datasets</a>
        <h2 class="dataset-name">{name}</h2>
        <div class="buttons">
          <a class="button" href={`/train?data=${name}`}>
            Train on it
          </a>
          <button type="button" class="danger" onClick={() => setAsking(true)}>
            Delete
          </button>
        </div>
      </div>
      <ProblemLine problem={problem} />
      <dl class="dataset-facts">
        {factsOf(dataset).map(([title, text]) => (
          <div key={title}>
            <dt class="muted">{title}</dt>
            <dd>{text}</dd>
          </div>
        ))}
      </dl>
      <Segmented
        label="Split"
        choices={SPLITS.map(labelOf)}
        value={labelOf(split)}
        onChange={(chosen) => setParams({ split: SPLITS.find((one) => labelOf(one) === chosen) ?? null, from: null, image: null })}
      />
      <PicturePage key={split} dataset={dataset} split={split} />
      {asking && (
        <Confirm title={`Delete the dataset ${name}?`} action="Delete" danger onConfirm={() => void remove()} onClose={() => setAsking(false)}>
          Its pictures are removed from the service. Models that were trained on it stay.
        </Confirm>
      )}
    </>
  );
}
