/** The card of a dataset: some of its pictures, and how many each split has. */
import type { Dataset } from "../../api/types";
import { RemotePicture } from "../../components/RemotePicture";
import { number } from "../../lib/format";
import { sizeOf, SPLITS } from "./facts";

export function DatasetCard({ dataset }: { dataset: Dataset }) {
  const { name, counts, height } = dataset;
  return (
    <article class="dataset" aria-label={name}>
      <a class="dataset-picture" href={`/data?name=${name}`} tabIndex={-1} aria-hidden="true">
        <RemotePicture path={`${dataset.links.preview}?count=${height === 1 ? 12 : 36}`} alt="" class="pixelated" />
      </a>
      <div class="stack">
        <h2 class="dataset-name">
          <a href={`/data?name=${name}`}>{name}</a>
        </h2>
        <p class="muted">{sizeOf(dataset)}</p>
        <dl class="counts">
          {SPLITS.map((split) => (
            <div key={split}>
              <dt class="muted">{split}</dt>
              <dd>{number(counts[split])}</dd>
            </div>
          ))}
        </dl>
      </div>
    </article>
  );
}
