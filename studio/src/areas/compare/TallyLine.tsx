/** How often each of two models was preferred in this browser. */
import { useState } from "preact/hooks";
import { Confirm } from "../../components/Dialog";
import { number } from "../../lib/format";
import { exactly } from "./state";
import { clear, signTest, tallies, tallyOf } from "./tally";

export function TallyLine({ first, second }: { first: string; second: string }) {
  const [asking, setAsking] = useState(false);
  const [a, b] = [exactly(first), exactly(second)];
  const tally = tallyOf(tallies.value, a, b);
  const total = tally.first + tally.second + tally.equal;
  return (
    <section class="stack" aria-label="Tally">
      <h3 class="section-name">Tally</h3>
      <dl class="tally">
        <dt>{a}</dt>
        <dd>{tally.first}</dd>
        <dt>{b}</dt>
        <dd>{tally.second}</dd>
        <dt>equal</dt>
        <dd>{tally.equal}</dd>
      </dl>
      {tally.first + tally.second > 0 && (
        <p class="field-hint muted" title="Two-sided sign test; ties are left out">
          If both were equally good, a result this uneven had the probability {number(signTest(tally), 2)}.
        </p>
      )}
      {total > 0 && (
        <button type="button" class="quiet" onClick={() => setAsking(true)}>
          Clear
        </button>
      )}
      {asking && (
        <Confirm title="Clear the tally?" action="Clear" danger onConfirm={() => clear(a, b)} onClose={() => setAsking(false)}>
          {total} choices between {a} and {b} are removed from this browser.
        </Confirm>
      )}
    </section>
  );
}
