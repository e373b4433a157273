/** The code that the sliders of a model change: computed, or the states of a picture that the model draws. */
import { useMemo } from "preact/hooks";
import type { Model, Problem } from "../../api/types";
import { useResource } from "../../state/resource";
import { type CodeShape, codeOf } from "./codes";
import { hasStates, loadStart, type Start } from "./states";

/** Returns the code and the order of its sliders; null while they are loaded, and why they could not be. */
export function useStart(model: Model, reference: string, layer: number, shape: CodeShape | null, seed: number | null): { start: Start | null; problem: Problem | null } {
  const key = `${reference} ${layer} ${seed}`;
  const loads = hasStates(model);
  const computed = useMemo(() => (loads || shape === null ? null : { code: codeOf(shape, seed), order: shape.active }), [key, loads]);
  const resource = useResource(key, async (signal) => (loads && shape !== null ? { key, start: await loadStart(model, reference, layer, shape, seed, signal) } : null));
  const { data, problem } = resource.state.value;
  if (!loads) return { start: computed, problem: null };
  return { start: data?.key === key ? data.start : null, problem };
}
