/** What an area shows while no model can do what it needs. */
import type { ComponentChildren } from "preact";
import { models } from "../state/service";
import { Empty } from "./Empty";
import { ProblemLine } from "./ProblemLine";

export function NoModel({ title, children }: { title: string; children: ComponentChildren }) {
  const { data, problem } = models.state.value;
  if (problem) return <ProblemLine problem={problem} onRetry={() => void models.reload()} />;
  return data === null ? null : <Empty title={title}>{children}</Empty>;
}
