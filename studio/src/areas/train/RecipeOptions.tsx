/** All options of a training, folded: those of the network, of the training, and what happens at its end. */
import { fieldError } from "../../api/problem";
import type { Family } from "../../api/types";
import { type Field, formatValue, type NumberField, parseValue } from "../../components/form/fields";
import { FieldControl } from "../../components/form/FieldControl";
import { setParams } from "../../router";
import { type Part, recipeFields, type RecipeField } from "./recipe";
import { problem } from "./starting";

interface Props {
  family: Family;
  params: ReadonlyMap<string, string>;
}

const TITLES: Record<Part, string> = { config: "Network", training: "Training" };
const SERVE: Field = {
  kind: "choice",
  name: "serve",
  description: "Whether the new version becomes the active one: if its first figure is better than that of the active one; always; never.",
  choices: ["if better", "always", "never"],
  default: "if better",
};

export function RecipeOptions({ family, params }: Props) {
  const gpus = (family.gpus as { maximum?: number }).maximum ?? 1;
  const end = [
    own("seed", "seed", "Of the weights and of everything that is random.", 0, "recipe.seed"),
    own("count", "test pictures", "How many test pictures the model is measured on at the end.", 1000, "evaluation.count"),
    own("k", "importance samples", "Per test picture.", 100, "evaluation.k"),
    ...(gpus > 1 ? [own("gpus", "GPUs", `At most ${gpus}.`, 1, "gpus")] : []),
    { path: "serve", field: SERVE, error: "serve" },
  ];
  return (
    <div class="stack">
      <Section title={TITLES.config} options={recipeFields(family, "config").map(option)} params={params} />
      <Section title={TITLES.training} options={recipeFields(family, "training").map(option)} params={params} />
      <Section title="Seed, test and activation" options={end} params={params} />
    </div>
  );
}

interface Option {
  /** Its parameter of the address. */
  path: string;
  field: Field;
  /** Its name in the service's errors. */
  error: string;
}

function option({ path, field }: RecipeField): Option {
  return { path, field, error: `recipe.${path}` };
}

function own(path: string, name: string, description: string, value: number, error: string): Option {
  const field: NumberField = {
    kind: "number",
    name,
    description,
    minimum: Number.NEGATIVE_INFINITY,
    maximum: Number.POSITIVE_INFINITY,
    integer: true,
    nullable: false,
    default: value,
  };
  return { path, field, error };
}

function Section({ title, options, params }: { title: string; options: readonly Option[]; params: ReadonlyMap<string, string> }) {
  const changed = options.filter(({ path }) => params.has(path));
  const failed = options.some(({ error }) => fieldError(problem.value, error) !== null);
  const reset = () => setParams(Object.fromEntries(changed.map(({ path }) => [path, null])));
  return (
    <details open={failed}>
      <summary>
        {title} {changed.length > 0 && <span class="muted">{changed.map(({ path, field }) => `${field.name} ${params.get(path) ?? ""}`).join(", ")}</span>}
      </summary>
      <div class="recipe">
        {options.map(({ path, field, error }) => (
          <FieldControl
            key={path}
            field={field}
            value={parseValue(field, params.get(path))}
            error={fieldError(problem.value, error)}
            onChange={(value) => setParams({ [path]: formatValue(field, value) }, { replace: true })}
          />
        ))}
      </div>
      {changed.length > 0 && (
        <button type="button" class="quiet" onClick={reset}>
          Back to the defaults
        </button>
      )}
    </details>
  );
}
