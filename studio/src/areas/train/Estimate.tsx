/** What a training would take: the result of a dry run. */
import type { TrainingBody } from "../../api/types";
import { bytes, duration, number } from "../../lib/format";
import type { DryRun } from "./starting";

export function Estimate({ dryRun, current }: { dryRun: DryRun; current: TrainingBody }) {
  const { estimate, body } = dryRun;
  const facts: [string, string][] = [
    ["Time", duration(estimate.seconds)],
    ["Memory", bytes(estimate.memory_bytes)],
    ["Parameters", number(estimate.parameters)],
  ];
  if (estimate.checkpoint_bytes) facts.push(["Checkpoint", bytes(estimate.checkpoint_bytes)]);
  if (estimate.images_per_second) facts.push(["Speed", `${number(estimate.images_per_second, 3)} images/s`]);
  const stale = JSON.stringify(body) !== JSON.stringify(current);
  return (
    <section class="estimate" aria-label="Dry run" role="status">
      <dl class="facts-row">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt class="muted">{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {stale && <p class="muted">The options have changed since this dry run.</p>}
    </section>
  );
}
