/** What can be done with a training: pause, resume, cancel, publish, start once more, use its model. */
import { useState } from "preact/hooks";
import { client, get } from "../../api/client";
import { follow } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Problem, Training } from "../../api/types";
import { Confirm } from "../../components/Dialog";
import { ProblemLine } from "../../components/ProblemLine";
import { go } from "../../router";
import { models } from "../../state/service";
import type { RunFeed } from "./feed";
import { paramsOf } from "./recipe";
import { families } from "./runs";

export function RunActions({ feed, training }: { feed: RunFeed; training: Training }) {
  const [acting, setActing] = useState<string | null>(null);
  const [asking, setAsking] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const { status, id, model, version } = training;
  const path = { params: { path: { job_id: id } } };
  const act = async (name: string, action: () => Promise<unknown>) => {
    setActing(name);
    setProblem(null);
    try {
      await action();
    } catch (error) {
      setProblem(problemOf(error));
    }
    await feed.reload();
    setActing(null);
  };
  const publish = async () => {
    const job = await get(client.POST("/v1/trainings/{job_id}/publish", path));
    await follow(job.id, { signal: AbortSignal.timeout(3_600_000) });
    await models.reload();
  };
  const again = () => go("train", paramsOf(training, families.data?.find(({ name }) => name === training.family)));
  const active = status === "running" || status === "queued";
  return (
    <div class="run-actions">
      <div class="buttons">
        {active && (
          <button type="button" disabled={acting !== null} onClick={() => void act("Pausing", () => get(client.POST("/v1/trainings/{job_id}/pause", path)))}>
            Pause
          </button>
        )}
        {status === "paused" && (
          <button type="button" class="primary" disabled={acting !== null} onClick={() => void act("Resuming", () => get(client.POST("/v1/trainings/{job_id}/resume", path)))}>
            Resume
          </button>
        )}
        {["paused", "failed", "cancelled"].includes(status) && (
          <button type="button" disabled={acting !== null} onClick={() => void act("Publishing: the model is measured on the test split", publish)}>
            Publish the checkpoint
          </button>
        )}
        {version && (
          <a class="button" href={`/draw?model=${model}&version=${version}`}>
            Draw with it
          </a>
        )}
        <button type="button" onClick={again}>
          Start a variant
        </button>
        {(active || status === "paused") && (
          <button type="button" class="danger" disabled={acting !== null} onClick={() => setAsking(true)}>
            Cancel
          </button>
        )}
      </div>
      {acting !== null && (
        <p class="muted" role="status">
          {acting} …
        </p>
      )}
      <ProblemLine problem={problem} />
      {asking && (
        <Confirm title={`Cancel the training of ${model}?`} action="Cancel the training" danger onConfirm={() => void act("Cancelling", () => get(client.POST("/v1/jobs/{job_id}/cancel", path)))} onClose={() => setAsking(false)}>
          It cannot be resumed. Its last checkpoint stays, and can be published.
        </Confirm>
      )}
    </div>
  );
}
