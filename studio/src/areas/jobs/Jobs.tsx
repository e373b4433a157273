/** Jobs: what runs and waits, first; then what has ended, with its result or its error. */
import { Empty } from "../../components/Empty";
import { ProblemLine } from "../../components/ProblemLine";
import type { Job } from "../../api/types";
import { jobs } from "../../state/service";
import { JobRow } from "./JobRow";
import "./jobs.css";

export default function Jobs() {
  const { data, problem } = jobs.state.value;
  const running = (data ?? []).filter(({ finished_at }) => finished_at === null).sort(inOrder);
  const ended = (data ?? []).filter(({ finished_at }) => finished_at !== null);
  return (
    <div class="page">
      <ProblemLine problem={problem} onRetry={() => void jobs.reload()} />
      {data?.length === 0 && (
        <Empty title="No jobs yet">A request that takes longer than some seconds becomes a job, and so does a training. It appears here.</Empty>
      )}
      {running.length > 0 && <JobList title="Running and waiting" jobs={running} />}
      {ended.length > 0 && <JobList title="Ended" jobs={ended} />}
    </div>
  );
}

function JobList({ title, jobs: listed }: { title: string; jobs: readonly Job[] }) {
  return (
    <section class="stack" aria-label={title}>
      <h2>{title}</h2>
      <ul class="jobs">
        {listed.map((job) => (
          <li key={job.id}>
            <JobRow job={job} />
          </li>
        ))}
      </ul>
    </section>
  );
}

/** Running jobs, then waiting ones by their position. */
function inOrder(a: Job, b: Job): number {
  return (a.position ?? 0) - (b.position ?? 0);
}
