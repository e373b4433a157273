/** The options of the request, its seed, the request as code, and downloads. */
import { fieldError } from "../../api/problem";
import type { Model } from "../../api/types";
import { type Field, formatValue, parseValue, type Value } from "../../components/form/fields";
import { FieldControl } from "../../components/form/FieldControl";
import { NumberBox } from "../../components/form/NumberBox";
import { SchemaForm } from "../../components/form/SchemaForm";
import { Icon } from "../../components/Icon";
import { RequestCode } from "../../components/RequestCode";
import { address, setParams } from "../../router";
import { drawAgain } from "./actions";
import { Downloads } from "./Downloads";
import { problem, selection, shown } from "./drawings";
import { bodyOf, COUNT, MAX_SEED, newSeed, optionFields, requestOf } from "./request";
import { SelectedPicture } from "./SelectedPicture";

export function Options({ model }: { model: Model }) {
  const { params } = address.value;
  const fields = optionFields(model);
  const request = requestOf(model, params);
  const change = (field: Field, value: Value) => setParams({ [field.name]: formatValue(field, value) }, { replace: true });
  const current = selection.value?.drawing ?? shown.value[0];
  return (
    <>
      <FieldControl
        field={COUNT}
        value={parseValue(COUNT, params.get("count"))}
        error={fieldError(problem.value, "count")}
        onChange={(value) => change(COUNT, value)}
      />
      <SchemaForm fields={fields} values={request.options} problem={problem.value} onChange={change} />
      <Seed seed={request.seed} error={fieldError(problem.value, "seed")} />
      <hr />
      {selection.value && <SelectedPicture selection={selection.value} />}
      <RequestCode operation="samples" body={bodyOf(current?.request ?? request, current?.version ?? request.version)} />
      {current && <Downloads drawing={current} />}
    </>
  );
}

function Seed({ seed, error }: { seed: number; error: string | null }) {
  return (
    <div class="field">
      <label class="field-name" for="seed">
        seed
      </label>
      <div class="seed">
        <NumberBox
          id="seed"
          value={seed}
          integer
          minimum={0}
          maximum={MAX_SEED}
          invalid={error !== null}
          onChange={(entered) => setParams({ seed: entered })}
        />
        <button type="button" class="icon-button" title="Draw again (R)" aria-label="Again: draw the same once more" onClick={drawAgain}>
          <Icon name="again" />
        </button>
        <button type="button" class="primary seed-new" title="New seed (N)" onClick={() => setParams({ seed: newSeed() })}>
          <Icon name="dice" />
          New
        </button>
      </div>
      {error && (
        <p class="field-error" role="alert">
          {error}
        </p>
      )}
    </div>
  );
}
