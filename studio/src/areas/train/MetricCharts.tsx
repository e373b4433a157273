/** The losses of a training by epoch, and its other metrics in small charts; all share their cursor. */
import { useMemo } from "preact/hooks";
import type { EpochMetrics } from "../../api/types";
import { Chart, type Curve } from "../../components/Chart";
import { number, words } from "../../lib/format";
import { address } from "../../router";
import { bestOf } from "./comparison";
import { LogSwitch } from "./LogSwitch";
import { lossCurves, otherCurves } from "./metricCurves";

interface Props {
  epochs: readonly EpochMetrics[];
  /** The epochs of which there is a preview, and the one that is shown. */
  marks: readonly number[];
  mark: number | null;
}

export function MetricCharts({ epochs, marks, mark }: Props) {
  const losses = useMemo(() => lossCurves(epochs), [epochs]);
  const others = useMemo(() => otherCurves(epochs), [epochs]);
  const positive = losses.every(({ values }) => values.every((value) => value === null || value > 0));
  const logarithmic = positive && address.value.params.get("scale") === "log";
  return (
    <section class="charts" aria-label="Curves">
      <div class="row">
        <h3>Loss per image</h3>
        <LogSwitch disabled={!positive} checked={logarithmic} />
      </div>
      <Chart label={summary(epochs)} xLabel="epoch" yLabel="loss" curves={losses} logarithmic={logarithmic} height={320} cursor="train" marks={marks} mark={mark} />
      {others.length > 0 && (
        <details>
          <summary>More metrics: {others.map(({ label }) => label).join(", ")}</summary>
          <div class="small-charts">
            {others.map((curve) => (
              <SmallChart key={curve.label} curve={curve} />
            ))}
          </div>
        </details>
      )}
    </section>
  );
}

function SmallChart({ curve }: { curve: Curve }) {
  const curves = useMemo(() => [curve], [curve]);
  return <Chart label={`${curve.label} by epoch`} xLabel="epoch" yLabel={curve.label} curves={curves} height={160} cursor="train" />;
}

function summary(epochs: readonly EpochMetrics[]): string {
  const last = epochs.at(-1);
  const best = bestOf(epochs);
  const parts = Object.entries(last ?? {}).flatMap(([name, value]: [string, unknown]) =>
    name.endsWith("loss") && typeof value === "number" ? [`${words(name)} ${number(value)}`] : [],
  );
  const lowest = best === null ? "" : `; lowest validation loss ${number(best.loss)} in epoch ${best.epoch}`;
  return `Losses by epoch. Epoch ${last?.epoch ?? 0}: ${parts.join(", ")}${lowest}`;
}
