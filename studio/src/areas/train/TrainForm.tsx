/** Starts a training: family, data and name; everything else is folded, with its default. */
import { fieldError } from "../../api/problem";
import type { Family } from "../../api/types";
import { Empty } from "../../components/Empty";
import { ProblemLine } from "../../components/ProblemLine";
import { address, setParams } from "../../router";
import { datasets } from "../../state/datasets";
import { useShortcuts } from "../../state/shortcuts";
import { Choice } from "./Choice";
import { Estimate } from "./Estimate";
import { bodyOf, PARTS, recipeFields, suggestedName } from "./recipe";
import { RecipeOptions } from "./RecipeOptions";
import { families } from "./runs";
import { cancel, dryRun, estimate, problem, start, starting } from "./starting";

export function TrainForm() {
  useShortcuts([{ key: "Escape", label: "Cancel the dry run", run: cancel }]);
  const { data: known, problem: unknown } = families.state.value;
  const sets = datasets.state.value.data;
  if (!known || !sets) return <ProblemLine problem={unknown ?? datasets.state.value.problem} />;
  const { params } = address.value;
  const family = known.find(({ name }) => name === params.get("family")) ?? known.find(({ name }) => name === "vae") ?? known[0];
  if (sets.length === 0 || family === undefined) {
    return (
      <Empty title="No data to train on yet">
        Add pictures, or fetch MNIST, in the area <a href="/data">Data</a>.
      </Empty>
    );
  }
  const dataset = sets.find(({ name }) => name === params.get("data")) ?? sets.find(({ kind }) => fits(family, kind)) ?? sets[0];
  const body = bodyOf(family, dataset?.name ?? "", params);
  const onSubmit = (event: SubmitEvent) => {
    event.preventDefault();
    void start(body);
  };
  return (
    <section class="train-form" aria-label="New training">
      <form class="train-choices" aria-label="Start a training" onSubmit={onSubmit}>
        <Choice label="family" value={family.name} choices={known.map(({ name }) => name)} error={fieldError(problem.value, "family")} onChange={(name) => chooseFamily(name)} />
        <Choice label="data" value={dataset?.name ?? ""} choices={sets.map(({ name }) => name)} error={fieldError(problem.value, "dataset")} onChange={(data) => setParams({ data })} />
        <NameField value={body.name} suggestion={suggestedName(family.name, dataset?.name ?? "")} />
        <div class="buttons train-buttons">
          <button type="submit" class="primary" disabled={starting.value !== null}>
            Start
          </button>
          <button type="button" disabled={starting.value !== null} onClick={() => void estimate(body)}>
            Dry run
          </button>
          {starting.value !== null && (
            <button type="button" onClick={cancel}>
              Cancel
            </button>
          )}
        </div>
      </form>
      <p class="muted">{family.summary}</p>
      <ProblemLine problem={problem.value} shownFields={shownFields(family)} />
      {starting.value === "dry run" && <p role="status">Timing a few steps; this takes some seconds …</p>}
      {dryRun.value && <Estimate dryRun={dryRun.value} current={body} />}
      <RecipeOptions family={family} params={params} />
    </section>
  );
}

/** Takes another family: options of the old one go. */
function chooseFamily(name: string): void {
  const options = [...address.value.params.keys()].filter((param) => param.includes("."));
  setParams({ ...Object.fromEntries(options.map((param) => [param, null])), family: name });
}

function fits(family: Family, kind: string): boolean {
  return family.name === "superres" ? kind === "photographs" : kind !== "photographs";
}

function shownFields(family: Family): string[] {
  const recipe = PARTS.flatMap((part) => recipeFields(family, part)).map(({ path }) => `recipe.${path}`);
  return ["family", "dataset", "name", "recipe.seed", "evaluation.count", "evaluation.k", "serve", "gpus", ...recipe];
}

function NameField({ value, suggestion }: { value: string; suggestion: string }) {
  const error = fieldError(problem.value, "name");
  return (
    <div class="field">
      <label class="field-name" for="train-name">
        name
      </label>
      <input
        id="train-name"
        type="text"
        spellcheck={false}
        autoComplete="off"
        value={value}
        aria-invalid={error !== null}
        aria-describedby="train-name-error"
        onInput={(event) => setParams({ name: event.currentTarget.value === suggestion ? null : event.currentTarget.value }, { replace: true })}
      />
      <p id="train-name-error" class="field-error" role={error === null ? undefined : "alert"}>
        {error}
      </p>
    </div>
  );
}
