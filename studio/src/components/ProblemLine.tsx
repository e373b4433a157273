/** An error, in the service's own words. Fields that show their own errors are left out. */
import { generalDetail } from "../api/problem";
import type { Problem } from "../api/types";

interface Props {
  problem: Problem | null;
  shownFields?: readonly string[];
  onRetry?: () => void;
}

export function ProblemLine({ problem, shownFields = [], onRetry }: Props) {
  const detail = problem && generalDetail(problem, shownFields);
  if (!problem || !detail) return null;
  return (
    <div class="problem" role="alert">
      <p>
        <strong>{problem.title}.</strong> {detail}
        {problem.request_id && <span class="muted problem-id"> Request {problem.request_id}</span>}
      </p>
      {onRetry && (
        <button type="button" onClick={onRetry}>
          Try again
        </button>
      )}
    </div>
  );
}
