/** A page of the pictures of a split. The service sends them as one sheet; each button shows its part of it. */
import { client, get } from "../../api/client";
import type { Dataset, DatasetImagePage as Page } from "../../api/types";
import { Empty } from "../../components/Empty";
import { ProblemLine } from "../../components/ProblemLine";
import { useBlobUrl } from "../../components/RemotePicture";
import { number } from "../../lib/format";
import { address, setParams } from "../../router";
import { useResource } from "../../state/resource";
import { useShortcuts } from "../../state/shortcuts";
import { pageSize, type Split } from "./facts";
import { PictureDetail } from "./PictureDetail";
import { cellOf } from "./sheet";

interface Props {
  dataset: Dataset;
  split: Split;
}

const COLUMNS = 10;

export function PicturePage({ dataset, split }: Props) {
  const size = pageSize(dataset);
  const total = dataset.counts[split];
  const asked = Number(address.value.params.get("from") ?? 0);
  const from = Number.isInteger(asked) && asked >= 0 && asked < total ? asked : 0;
  const image = Number(address.value.params.get("image") ?? Number.NaN);
  const query = { split, limit: size, ...(from > 0 && { after: from - 1 }) };
  const columns = dataset.height === 1 ? 1 : COLUMNS;
  const text = new URLSearchParams({ ...Object.fromEntries(Object.entries(query).map(([name, value]) => [name, String(value)])), columns: String(columns) });
  const { url } = useBlobUrl(`${dataset.links.images}?${text.toString()}`);
  const page = useResource(`${dataset.name} ${split} ${from}`, (signal) =>
    get<Page | string>(client.GET("/v1/datasets/{name}/images", { params: { path: { name: dataset.name }, query }, signal })),
  );
  const { data, problem } = page.state.value;
  const pictures = data === null || typeof data === "string" ? [] : data.data;
  const turn = (by: number) => {
    const next = from + by * size;
    if (next < total && next > -size) setParams({ from: Math.max(0, next) || null, image: null });
  };
  useShortcuts([
    { key: "ArrowLeft", label: "Previous page", run: () => turn(-1) },
    { key: "ArrowRight", label: "Next page", run: () => turn(1) },
  ]);
  if (total === 0) return <Empty title={`The ${split} split is empty`}>Its share was 0, or the file had none.</Empty>;
  const cell = cellOf(dataset, columns, Math.ceil(pictures.length / columns), url);
  const selected = pictures.find(({ index }) => index === image);
  return (
    <section class="stack" aria-label={`Pictures of the ${split} split`}>
      <ProblemLine problem={problem} onRetry={() => void page.reload()} />
      <div class="pager">
        <button type="button" disabled={from === 0} onClick={() => turn(-1)}>
          Previous
        </button>
        <button type="button" disabled={from + size >= total} onClick={() => turn(1)}>
          Next
        </button>
        <p class="muted">
          {number(from)} to {number(Math.min(from + size, total) - 1)} of {number(total)}
        </p>
      </div>
      <div class="pictures-and-detail">
        <ul class={columns === 1 ? "pictures pictures-strips" : "pictures"}>
          {pictures.map(({ index, label }, place) => (
            <li key={index}>
              <button
                type="button"
                class="picture pixelated"
                style={cell.style(place)}
                aria-pressed={index === image}
                aria-label={`Picture ${index}${label === undefined || label === null ? "" : `, label ${label}`}`}
                onClick={() => setParams({ image: index === image ? null : index }, { replace: true })}
              />
            </li>
          ))}
        </ul>
        {selected ? <PictureDetail dataset={dataset} picture={selected} /> : <p class="picture-hint muted">Choose a picture to enlarge it.</p>}
      </div>
    </section>
  );
}
