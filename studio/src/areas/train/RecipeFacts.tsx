/** The whole recipe of a training, folded. */
import type { Training } from "../../api/types";
import { number, words } from "../../lib/format";

export function RecipeFacts({ training }: { training: Training }) {
  const { recipe, seed } = training;
  const options = ["config", "training"].flatMap((part) => Object.entries((recipe[part] ?? {}) as Record<string, unknown>));
  return (
    <details>
      <summary>Recipe</summary>
      <dl class="recipe-facts">
        {[["seed", seed] as const, ...options].map(([name, value]) => (
          <div key={name}>
            <dt class="muted">{words(name)}</dt>
            <dd>{typeof value === "number" ? number(value) : Array.isArray(value) ? value.join(", ") || "—" : String(value)}</dd>
          </div>
        ))}
      </dl>
    </details>
  );
}
