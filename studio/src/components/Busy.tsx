/** Says over a result that another one is being made: how far it is, and a button to stop it. */
import { useEffect, useState } from "preact/hooks";
import type { JobProgress } from "../api/operations";
import { Progress } from "./Progress";

interface Props {
  busy: boolean;
  /** Of the job that the request has become; null before. */
  job: JobProgress | null;
  /** What is being made, such as "Drawing 64 pictures". */
  label: string;
  onCancel: () => void;
}

/** What takes less than this shows nothing: it would only flicker. */
const DELAY_MS = 400;

export function Busy({ busy, job, label, onCancel }: Props) {
  const [late, setLate] = useState(false);
  useEffect(() => {
    if (!busy) return;
    const timer = setTimeout(() => setLate(true), DELAY_MS);
    return () => {
      clearTimeout(timer);
      setLate(false);
    };
  }, [busy]);
  if (!busy || !late) return null;
  const waits = job?.status === "queued";
  const share = job === null || waits ? null : job.progress;
  return (
    <div class="busy">
      <Progress value={share} label={label} />
      <p class="busy-text" role="status">
        {label}
        {waits ? ", waiting" : share !== null && ` · ${Math.round(share * 100)} %`}
        <button type="button" onClick={onCancel}>
          Cancel
        </button>
      </p>
    </div>
  );
}
