/** What an area shows while no model can do what it needs, or while the model of the address cannot. */
import type { ComponentChildren } from "preact";
import { address } from "../router";
import { models, sought, unknownModel } from "../state/service";
import { Empty } from "./Empty";
import { ProblemLine } from "./ProblemLine";

export function NoModel({ title, children }: { title: string; children: ComponentChildren }) {
  const { data, problem } = models.state.value;
  if (problem) return <ProblemLine problem={problem} onRetry={() => void models.reload()} />;
  if (data === null || sought.value !== null) return null;
  if (unknownModel.value !== null) return <Empty title={`There is no model ${unknownModel.value}`}>Choose another one above. It may have been deleted.</Empty>;
  const name = address.value.params.get("model");
  if (name !== undefined) return <Empty title={`The model ${name} cannot be used here`}>Choose another one above.</Empty>;
  return <Empty title={title}>{children}</Empty>;
}
