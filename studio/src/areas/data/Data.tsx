/** Data: datasets as cards, one of them in detail, and the form that adds one. */
import { useEffect } from "preact/hooks";
import { Empty } from "../../components/Empty";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { address } from "../../router";
import { datasets } from "../../state/datasets";
import { unfinished } from "../../state/service";
import { AddDataset } from "./AddDataset";
import { step } from "./additions";
import "./data.css";
import { DatasetCard } from "./DatasetCard";
import { DatasetDetail } from "./DatasetDetail";

export default function Data() {
  const { data, problem } = datasets.state.value;
  const name = address.value.params.get("name");
  const fetching = unfinished.value.filter(({ kind }) => kind === "dataset");
  useEffect(() => void datasets.reload(), [fetching.length]);
  const shown = data?.find((dataset) => dataset.name === name);
  if (shown !== undefined) {
    return (
      <div class="page">
        <DatasetDetail key={shown.name} dataset={shown} />
      </div>
    );
  }
  return (
    <div class="page">
      <ProblemLine problem={problem} onRetry={() => void datasets.reload()} />
      {name !== undefined && data !== null && <p role="alert">There is no dataset {name} (any more).</p>}
      <AddDataset />
      {step.value === null &&
        fetching.map((job) => (
          <p key={job.id} class="fetching">
            The service fetches a dataset: <a href="/jobs">job</a>
            <Progress value={job.progress} label="Progress of the dataset" />
          </p>
        ))}
      {data?.length === 0 && <Empty title="No datasets yet">Drop a folder of pictures above, or fetch MNIST from “Public set”. Then train a model on it.</Empty>}
      <ul class="datasets">
        {data?.map((dataset) => (
          <li key={dataset.name}>
            <DatasetCard dataset={dataset} />
          </li>
        ))}
      </ul>
    </div>
  );
}
