/** Which models are compared, with which seed, and whether their names are hidden. */
import type { Model } from "../../api/types";
import { NumberBox } from "../../components/form/NumberBox";
import { Icon } from "../../components/Icon";
import { setParams } from "../../router";
import { MAX_SEED, newSeed } from "../draw/request";
import { choicesOf, type Comparison, COUNT, MAX_COLUMNS, MAX_COUNT } from "./request";
import { nextRound } from "./state";
import { TallyLine } from "./TallyLine";

interface Props {
  comparison: Comparison;
  /** Those that draw samples. */
  models: readonly Model[];
}

export function CompareOptions({ comparison, models }: Props) {
  const { refs, seed, count, blind } = comparison;
  const choices = choicesOf(models);
  const show = (changed: readonly string[]) => {
    nextRound();
    setParams({ models: changed.join(",") });
  };
  const setBlind = (on: boolean) => {
    nextRound();
    setParams({ blind: on ? 1 : null });
  };
  return (
    <>
      <fieldset class="choices">
        <legend class="field-name">{blind ? "models: the first two, in random order" : "models and versions"}</legend>
        {refs.map((ref, index) => (
          <div key={index} class="choice">
            <select aria-label={`Model ${index + 1}`} value={ref} onChange={(event) => show(refs.with(index, event.currentTarget.value))}>
              {choices.map((one) => (
                <option key={one} value={one}>
                  {one}
                </option>
              ))}
            </select>
            <button type="button" class="icon-button" disabled={refs.length <= (blind ? 2 : 1)} aria-label={`Remove model ${index + 1}`} onClick={() => show(refs.filter((_, other) => other !== index))}>
              <Icon name="close" />
            </button>
          </div>
        ))}
        {refs.length < MAX_COLUMNS && !blind && (
          <button type="button" onClick={() => show([...refs, choices.find((one) => !refs.includes(one)) ?? choices[0] ?? ""])}>
            Add a model
          </button>
        )}
      </fieldset>
      <div class="field">
        <label class="field-name" for="compare-count">
          pictures
        </label>
        <NumberBox id="compare-count" class="number-box" value={count} integer minimum={1} maximum={MAX_COUNT} invalid={false} onChange={(entered) => setParams({ count: entered === COUNT ? null : entered })} />
        <p class="field-hint muted">1 to {MAX_COUNT}</p>
      </div>
      {!blind && (
        <div class="field">
          <label class="field-name" for="compare-seed">
            seed
          </label>
          <div class="choice">
            <NumberBox id="compare-seed" value={seed} integer minimum={0} maximum={MAX_SEED} invalid={false} onChange={(entered) => setParams({ seed: entered })} />
            <button type="button" class="primary" title="New seed (N)" onClick={() => setParams({ seed: newSeed() })}>
              <Icon name="dice" />
              New
            </button>
          </div>
        </div>
      )}
      <label class="row">
        <span class="field-name">
          blind
          <span class="muted"> names are hidden until you choose</span>
        </span>
        <input type="checkbox" class="switch" checked={blind} disabled={refs.length < 2} onChange={(event) => setBlind(event.currentTarget.checked)} />
      </label>
      {blind && refs[0] !== undefined && refs[1] !== undefined && <TallyLine first={refs[0]} second={refs[1]} />}
    </>
  );
}
