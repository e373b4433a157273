/** The card of a model. */
import type { Model } from "../../api/types";
import { AREAS } from "../../areas";
import { dateTime, duration, figureName, figureValue, number } from "../../lib/format";
import { SampleSheet } from "./SampleSheet";
import { Versions } from "./Versions";

const FIGURES = 3;

/** The parts of a card's provenance that the page shows. */
interface Provenance {
  data?: { name?: string; count?: number };
  recipe?: { data?: string };
  epochs?: number;
  seconds?: number;
  hardware?: string;
}

export function ModelCard({ model, onChange }: { model: Model; onChange: () => void }) {
  const made = model.created_at ? dateTime(model.created_at) : null;
  const provenance = model.provenance as Provenance;
  const time = trainingTime(provenance);
  const { channels, height, width } = model.image;
  return (
    <article class="card" aria-label={model.name}>
      <SampleSheet model={model} />
      <div class="card-text">
        <h2 class="card-name">{model.name}</h2>
        <p class="muted">{model.summary}</p>
        <dl class="facts">
          {model.figures.slice(0, FIGURES).map((figure) => (
            <Fact key={figure.name} name={figureName(figure.name)} value={figureValue(figure.value, figure.unit, figure.detail)} title={figure.detail} />
          ))}
          <Fact name="Trained on" value={trainedOn(provenance)} />
          {time !== null && <Fact name="Training" value={time} />}
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

interface FactProps {
  name: string;
  value: string;
  /** How the value was measured. */
  title?: string | null | undefined;
}

function Fact({ name, value, title }: FactProps) {
  return (
    <div class="fact" title={title ?? ""}>
      <dt class="muted">{name}</dt>
      <dd class={title ? "figure" : ""}>{value}</dd>
    </div>
  );
}

/** Returns the data of a model's training, and how many pictures it had. */
function trainedOn({ data, recipe }: Provenance): string {
  const name = data?.name ?? recipe?.data ?? "unknown data";
  return data?.count === undefined ? name : `${name}, ${number(data.count)} pictures`;
}

/** Returns how long a model was trained; null if the card does not say so. */
function trainingTime({ epochs, seconds, hardware }: Provenance): string | null {
  if (epochs === undefined) return null;
  const parts = [`${number(epochs)} epoch${epochs === 1 ? "" : "s"}`, seconds === undefined ? null : duration(seconds), hardware];
  return parts.filter((part) => part).join(", ");
}
