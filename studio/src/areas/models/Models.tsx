/** Models: one card each, with what it draws, how well, and which of its versions serves. */
import { Empty } from "../../components/Empty";
import { ProblemLine } from "../../components/ProblemLine";
import { models } from "../../state/service";
import { ModelCard } from "./ModelCard";
import "./models.css";

export default function Models() {
  const { data, problem } = models.state.value;
  const reload = () => void models.reload();
  return (
    <div class="page">
      <ProblemLine problem={problem} onRetry={reload} />
      {data?.length === 0 && (
        <Empty title="No models yet">Train one in the area Train, or put a checkpoint into the service's folder of checkpoints.</Empty>
      )}
      <ul class="cards">
        {data?.map((model) => (
          <li key={model.name}>
            <ModelCard model={model} onChange={reload} />
          </li>
        ))}
      </ul>
    </div>
  );
}
