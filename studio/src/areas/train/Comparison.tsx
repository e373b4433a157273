/** Several trainings: their losses in one chart, and in a table how their options and metrics differ. */
import { useMemo } from "preact/hooks";
import { Chart } from "../../components/Chart";
import { ProblemLine } from "../../components/ProblemLine";
import { address } from "../../router";
import { differences, results, type Row } from "./comparison";
import type { RunFeed } from "./feed";
import { LogSwitch } from "./LogSwitch";
import { colorOf, lossCurves } from "./metricCurves";

export function Comparison({ feeds }: { feeds: readonly RunFeed[] }) {
  const epochs = feeds.map((feed) => feed.epochs.value);
  const trainings = feeds.map((feed) => feed.training.value);
  const names = trainings.map((training, index) => (training === null ? `run ${index + 1}` : training.version ? `${training.model}@${training.version}` : training.model));
  const labels = names.map((name, index) => (names.indexOf(name) === names.lastIndexOf(name) ? name : `${name} (${index + 1})`));
  const curves = useMemo(() => epochs.flatMap((run, index) => lossCurves(run, index, `${labels[index] ?? ""} `)), [...epochs, labels.join()]);
  const positive = curves.every(({ values }) => values.every((value) => value === null || value > 0));
  const logarithmic = positive && address.value.params.get("scale") === "log";
  const known = trainings.filter((training) => training !== null);
  return (
    <>
      <div class="row">
        <a href="/train">All trainings</a>
        <LogSwitch checked={logarithmic} disabled={!positive} />
      </div>
      {feeds.map((feed) => (
        <ProblemLine key={feed.id} problem={feed.problem.value} onRetry={() => void feed.retry()} />
      ))}
      <Chart label={`Losses by epoch of ${labels.join(", ")}`} xLabel="epoch" yLabel="loss" curves={curves} logarithmic={logarithmic} height={360} cursor="train" />
      <div class="table-frame" tabIndex={0} role="region" aria-label="Comparison">
        <table class="table">
          <thead>
            <tr>
              <th scope="col">
                <span class="hidden">Option or metric</span>
              </th>
              {feeds.map((feed, index) => (
                <th key={feed.id} scope="col">
                  <span class="swatch" style={{ background: colorOf(index) }} aria-hidden="true" />
                  <a href={`/train?run=${feed.id}`}>{labels[index]}</a>
                </th>
              ))}
            </tr>
          </thead>
          <Rows title="Options that differ" rows={known.length === feeds.length ? differences(known) : []} empty="none" />
          <Rows title="Metrics" rows={results(epochs)} empty="no epoch yet" />
        </table>
      </div>
    </>
  );
}

function Rows({ title, rows, empty }: { title: string; rows: readonly Row[]; empty: string }) {
  return (
    <tbody>
      <tr>
        <th scope="rowgroup" class="table-title">
          {title}
          {rows.length === 0 && <span class="muted"> {empty}</span>}
        </th>
      </tr>
      {rows.map(({ name, values }) => (
        <tr key={name}>
          <th scope="row">{name}</th>
          {values.map((value, index) => (
            <td key={index}>{value}</td>
          ))}
        </tr>
      ))}
    </tbody>
  );
}
