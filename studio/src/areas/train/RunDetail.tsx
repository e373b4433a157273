/** One training: how far it is, its curves, the previews of its epochs, and its log. */
import { Empty } from "../../components/Empty";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { address, setParams } from "../../router";
import { useShortcuts } from "../../state/shortcuts";
import type { RunFeed } from "./feed";
import { FilmStrip } from "./FilmStrip";
import { MetricCharts } from "./MetricCharts";
import { RecipeFacts } from "./RecipeFacts";
import { RunActions } from "./RunActions";
import { timeOf } from "./RunList";
import { RunLog } from "./RunLog";

export function RunDetail({ feed }: { feed: RunFeed }) {
  const training = feed.training.value;
  const previews = feed.previews.value;
  const asked = Number(address.value.params.get("epoch") ?? Number.NaN);
  const shown = previews.find(({ epoch }) => epoch === asked) ?? previews.at(-1);
  const step = (by: number) => {
    const next = previews[previews.findIndex(({ epoch }) => epoch === shown?.epoch) + by];
    if (next !== undefined) setParams({ epoch: next === previews.at(-1) ? null : next.epoch }, { replace: true });
  };
  useShortcuts([
    { key: "ArrowLeft", label: "Preview of an earlier epoch", run: () => step(-1) },
    { key: "ArrowRight", label: "Preview of a later epoch", run: () => step(1) },
  ]);
  if (training === null) {
    return feed.problem.value === null ? (
      <p class="muted" role="status">
        Loading the training …
      </p>
    ) : (
      <>
        <a href="/train">All trainings</a>
        <ProblemLine problem={feed.problem.value} onRetry={() => void feed.retry()} />
      </>
    );
  }
  const { model, version, family, dataset, status } = training;
  const running = status === "running" || status === "queued";
  return (
    <>
      <div class="run-head">
        <a href="/train">All trainings</a>
        <h2 class="run-title">
          {model}
          {version && ` @${version}`}
        </h2>
        <p class="muted">
          {family} on {dataset}
        </p>
        <p class={`run-status run-${status}`} role="status">
          {status}
        </p>
        <p class="muted">{timeOf({ ...training, progress: feed.progress.value })}</p>
        <RunActions feed={feed} training={training} />
      </div>
      {running && <Progress value={status === "running" ? feed.progress.value : 0} label={`Progress of ${model}`} />}
      <ProblemLine problem={feed.problem.value} onRetry={() => void feed.retry()} />
      <ProblemLine problem={training.problem} />
      <div class="run-result">
        {feed.epochs.value.length === 0 ? (
          <Empty title={running ? "No epoch has ended yet" : "No epoch was finished"}>{running ? "The first point of the curves is drawn after the first epoch." : "See the log below."}</Empty>
        ) : (
          <MetricCharts epochs={feed.epochs.value} marks={previews.map(({ epoch }) => epoch)} mark={shown?.epoch ?? null} />
        )}
        <FilmStrip previews={previews} shown={shown} running={running} />
      </div>
      <RunLog lines={feed.log.value} />
      <RecipeFacts training={training} />
    </>
  );
}
