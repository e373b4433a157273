/** Compare: one seed, several models or versions side by side; or two of them blind, with a tally. */
import { Empty } from "../../components/Empty";
import { Workspace } from "../../components/Workspace";
import { address, setParams } from "../../router";
import { modelsFor, models } from "../../state/service";
import { useShortcuts } from "../../state/shortcuts";
import { newSeed } from "../draw/request";
import { BlindChoice } from "./BlindChoice";
import { Column } from "./Column";
import { CompareOptions } from "./CompareOptions";
import "./compare.css";
import { type Comparison, comparisonOf } from "./request";
import { choice, choose, nextRound, repeated, round, versions } from "./state";

export default function Compare() {
  const able = modelsFor("samples");
  const comparison = comparisonOf(address.value.params, able);
  const { refs, blind } = comparison;
  const [first = "", second = ""] = refs;
  useShortcuts([
    { key: "r", label: "Draw again", run: () => repeated.value++ },
    { key: "n", label: blind ? "Next round" : "New seed", run: () => (blind ? nextRound() : setParams({ seed: newSeed() })) },
    ...(blind
      ? [
          { key: "a", label: "A is better", run: () => choose(first, second, "A") },
          { key: "b", label: "B is better", run: () => choose(first, second, "B") },
          { key: "e", label: "Both are equally good", run: () => choose(first, second, "equal") },
        ]
      : []),
  ]);
  if (models.state.value.data !== null && able.length === 0) {
    return <Empty title="No model draws samples">Train one in the area Train; two versions of it can be compared here.</Empty>;
  }
  return <Workspace result={<Columns comparison={comparison} />} options={<CompareOptions comparison={comparison} models={able} />} />;
}

function Columns({ comparison }: { comparison: Comparison }) {
  const { refs, seed, count, blind } = comparison;
  const { swapped, seed: hiddenSeed } = round.value;
  const able = modelsFor("samples");
  const shown = blind ? refs.slice(0, 2) : refs;
  const order = blind && swapped ? shown.toReversed() : shown;
  const hidden = blind && choice.value === null;
  return (
    <div class="page compare">
      <div class={`columns columns-${order.length}`}>
        {order.map((ref, index) => {
          const model = able.find(({ name }) => name === ref.split("@")[0]);
          return (
            model && (
              <Column
                // blind, a column is a place: what it shows says nothing of what it showed before
                key={blind ? `${hiddenSeed} ${index}` : `${ref} ${index}`}
                model={model}
                reference={ref}
                seed={blind ? hiddenSeed : seed}
                count={count}
                again={repeated.value}
                letter={hidden ? (["A", "B"][index] ?? null) : null}
                onVersion={(version) => (versions.value = { ...versions.peek(), [ref]: version })}
              />
            )
          );
        })}
      </div>
      {blind && <BlindChoice first={refs[0] ?? ""} second={refs[1] ?? ""} />}
    </div>
  );
}
