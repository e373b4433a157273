/** The card of a model. */
import type { Model } from "../../api/types";
import { AREAS } from "../../areas";
import { dateTime, figureName, figureValue } from "../../lib/format";
import { SampleSheet } from "./SampleSheet";
import { Versions } from "./Versions";

const FIGURES = 3;

/** The parts of a card's provenance that the page shows. */
interface Provenance {
  data?: string | { name?: string };
  recipe?: { data?: string; training?: { epochs?: number } };
  seconds?: number;
}

export function ModelCard({ model, onChange }: { model: Model; onChange: () => void }) {
  const provenance = model.provenance as Provenance;
  const epochs = provenance.recipe?.training?.epochs;
  const made = model.created_at ? dateTime(model.created_at) : null;
  const { channels, height, width } = model.image;
  return (
    <article class="card" aria-label={model.name}>
      <SampleSheet model={model} />
      <div class="card-text">
        <h2 class="card-name">{model.name}</h2>
        <p class="muted">{model.summary}</p>
        <dl class="figures">
          {model.figures.slice(0, FIGURES).map((figure) => (
            <div key={figure.name} class="figure" title={figure.detail ?? ""}>
              <dt class="muted">{figureName(figure.name)}</dt>
              <dd>{figureValue(figure.value, figure.unit, figure.detail)}</dd>
            </div>
          ))}
        </dl>
        <dl class="facts">
          <Fact name="Trained on" value={`${provenance.recipe?.data ?? "unknown data"}${epochs === undefined ? "" : `, ${epochs} epochs`}`} />
          <Fact name="Pictures" value={height === 1 ? `vectors of ${width}` : `${width} × ${height}${channels === 3 ? ", colour" : ""}`} />
          {made !== null && <Fact name="Made" value={made} />}
        </dl>
        <Versions model={model} onChange={onChange} />
        <p class="card-links">
          {AREAS.filter(({ operation }) => operation !== undefined && operation in model.operations).map(({ id, label }) => (
            <a key={id} href={`/${id}?model=${model.name}`}>
              {label}
            </a>
          ))}
        </p>
      </div>
    </article>
  );
}

function Fact({ name, value }: { name: string; value: string }) {
  return (
    <div class="fact">
      <dt class="muted">{name}</dt>
      <dd>{value}</dd>
    </div>
  );
}
