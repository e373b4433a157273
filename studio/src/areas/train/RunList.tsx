/** The trainings, newest first. Some of them can be chosen and compared. */
import { signal } from "@preact/signals";
import type { Training } from "../../api/types";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { dateTime, duration } from "../../lib/format";
import { go } from "../../router";
import { MAX_COMPARED, trainings } from "./runs";

/** The ids of the trainings that are to be compared. */
const chosen = signal<readonly string[]>([]);

export function RunList() {
  const { data, problem } = trainings.state.value;
  const ids = chosen.value.filter((id) => data?.some((training) => training.id === id));
  const toggle = (id: string) => (chosen.value = ids.includes(id) ? ids.filter((other) => other !== id) : [...ids, id].slice(-MAX_COMPARED));
  return (
    <section class="stack" aria-label="Trainings">
      <ProblemLine problem={problem} onRetry={() => void trainings.reload()} />
      <div class="row">
        <h2>Trainings</h2>
        <button type="button" disabled={ids.length < 2} onClick={() => go("train", { run: ids.join(",") })}>
          {ids.length < 2 ? "Compare: choose two or more" : `Compare ${ids.length}`}
        </button>
      </div>
      {data?.length === 0 && <p class="muted">None yet. Start one above; it appears here, and its curves are drawn while it runs.</p>}
      <ul class="runs">
        {data?.map((training) => (
          <li key={training.id}>
            <RunRow training={training} chosen={ids.includes(training.id)} onToggle={() => toggle(training.id)} />
          </li>
        ))}
      </ul>
    </section>
  );
}

function RunRow({ training, chosen: checked, onToggle }: { training: Training; chosen: boolean; onToggle: () => void }) {
  const { id, model, version, family, dataset, status, progress } = training;
  return (
    <article class="run" aria-label={`${model}, ${status}`}>
      <input type="checkbox" aria-label={`Compare ${model}, ${family} on ${dataset}`} checked={checked} onChange={onToggle} />
      <p class="run-name">
        <a href={`/train?run=${id}`}>
          {model}
          {version && ` @${version}`}
        </a>
        <span class="muted">
          {" "}
          {family} on {dataset}
        </span>
      </p>
      <p class={`run-status run-${status}`}>{status}</p>
      <p class="run-time muted">{timeOf(training)}</p>
      {status === "running" && <Progress value={progress} label={`Progress of ${model}`} />}
    </article>
  );
}

/** Returns how far a training is, or when it ended and how long it took. */
export function timeOf({ status, progress, estimated_remaining_s: left, started_at, finished_at, waiting_reason }: Training): string {
  if (status === "running") return `${Math.floor(progress * 100)} %${typeof left === "number" ? `, ${duration(left)} left` : ""}`;
  if (finished_at === null) return waiting_reason ?? "";
  const took = started_at === null ? "" : `, took ${duration((Date.parse(finished_at) - Date.parse(started_at)) / 1000)}`;
  return `${dateTime(finished_at) ?? ""}${took}`;
}
