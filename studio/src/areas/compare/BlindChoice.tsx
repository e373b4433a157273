/** The question of a blind round: which is better; after the choice, which was which. */
import { exactly, choice, choose, nextRound, round } from "./state";

interface Props {
  /** The two models, in the order of the address. */
  first: string;
  second: string;
}

export function BlindChoice({ first, second }: Props) {
  const chosen = choice.value;
  const [a, b] = round.value.swapped ? [second, first] : [first, second];
  if (chosen === null) {
    return (
      <div class="blind" role="group" aria-label="Which is better?">
        <p>Which is better?</p>
        <div class="buttons">
          <button type="button" class="primary" title="Key: A" onClick={() => choose(first, second, "A")}>
            A
          </button>
          <button type="button" title="Key: E" onClick={() => choose(first, second, "equal")}>
            Equal
          </button>
          <button type="button" class="primary" title="Key: B" onClick={() => choose(first, second, "B")}>
            B
          </button>
        </div>
      </div>
    );
  }
  return (
    <div class="blind">
      <p role="status">
        A was {exactly(a)}, B was {exactly(b)}. You chose {chosen === "equal" ? "neither" : `${chosen}: ${exactly(chosen === "A" ? a : b)}`}.
      </p>
      <button type="button" class="primary" title="Key: N" ref={(button) => button?.focus()} onClick={nextRound}>
        Next
      </button>
    </div>
  );
}
