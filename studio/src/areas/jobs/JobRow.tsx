/** One job: what it is, how far it is or how it ended, and what can be done with it. */
import { useState } from "preact/hooks";
import { client, get } from "../../api/client";
import { problemOf } from "../../api/problem";
import type { Job, Problem } from "../../api/types";
import { Confirm } from "../../components/Dialog";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { dateTime, duration, number } from "../../lib/format";
import { jobs } from "../../state/service";
import { JobResult } from "./JobResult";

export function JobRow({ job }: { job: Job }) {
  const [problem, setProblem] = useState<Problem | null>(null);
  const [acting, setActing] = useState(false);
  const [asking, setAsking] = useState(false);
  const [picture, setPicture] = useState<string | null>(null);
  const path = { params: { path: { job_id: job.id } } };
  const act = async (action: () => Promise<unknown>) => {
    setActing(true);
    setProblem(null);
    try {
      await action();
      await jobs.reload();
    } catch (error) {
      setProblem(problemOf(error));
    }
    setActing(false);
  };
  const unfinished = job.finished_at === null;
  const end = () => void act(() => (unfinished ? get(client.POST("/v1/jobs/{job_id}/cancel", path)) : get(client.DELETE("/v1/jobs/{job_id}", path))));
  return (
    <article class="job" aria-label={`${job.kind} ${job.model}`.trim()} title={job.id}>
      <div class="job-line">
        <p class="job-name">
          {job.kind} <span class="muted">{aboutOf(job)}</span>
        </p>
        <p class={`job-status job-${job.status}`}>{job.status}</p>
        <p class="job-time muted">{timeOf(job)}</p>
        <div class="buttons job-actions">
          {job.status === "succeeded" && <JobResult job={job} picture={picture} onPicture={setPicture} onProblem={setProblem} />}
          <button type="button" class={unfinished ? "" : "quiet"} disabled={acting} onClick={() => (job.kind === "training" ? setAsking(true) : end())}>
            {unfinished ? "Cancel" : "Delete"}
          </button>
        </div>
      </div>
      {job.status === "running" && <Progress value={job.progress} label={`Progress of ${job.kind}`} />}
      {unfinished && job.waiting_reason && <p class="muted small">{job.waiting_reason}</p>}
      <ProblemLine problem={problem ?? job.problem} />
      {picture !== null && <img class="job-picture pixelated" src={picture} alt={`Result of ${job.kind}`} />}
      {asking && (
        <Confirm
          title={`${unfinished ? "Cancel" : "Delete"} the training of ${job.model}?`}
          action={`${unfinished ? "Cancel" : "Delete"} the training`}
          danger
          onConfirm={end}
          onClose={() => setAsking(false)}
        >
          {unfinished
            ? "It cannot be resumed. Its last checkpoint stays, and can be published."
            : "Its curves, its previews and its checkpoint are removed from the service. Versions that were published stay."}
        </Confirm>
      )}
    </article>
  );
}

/** Returns what a job works on: its model, how many pictures, and their seed. */
function aboutOf(job: Job): string {
  const { count, name, source } = job.request;
  const parts = [job.model === "" ? (name ?? source) : job.model, typeof count === "number" && count > 1 ? `${number(count)} pictures` : null];
  if (typeof count === "number") parts.push(`seed ${job.seed}`);
  return parts.filter((part) => typeof part === "string" && part !== "").join(" · ");
}

/** Returns how long a job still waits or runs, or when it ended and how long it took. */
function timeOf(job: Job): string {
  if (job.status === "running") {
    const left = job.estimated_remaining_s;
    const done = `${Math.round(job.progress * 100)} %`;
    return left === null || left === undefined ? done : `${done}, ${duration(left)} left`;
  }
  if (job.status === "queued") {
    const start = job.estimated_start_s;
    const place = job.position === null || job.position === undefined ? "waits" : `number ${job.position} in the queue`;
    return start === null || start === undefined ? place : `${place}, starts in ${duration(start)}`;
  }
  if (job.finished_at === null) return "";
  const seconds = (Date.parse(job.finished_at) - Date.parse(job.started_at ?? job.created_at)) / 1000;
  return `${dateTime(job.finished_at) ?? ""}, took ${duration(seconds)}`;
}
