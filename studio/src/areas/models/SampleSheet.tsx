/** What a model draws: its sample sheet. */
import type { Model } from "../../api/types";
import { useBlobUrl } from "../../components/RemotePicture";

export function SampleSheet({ model }: { model: Model }) {
  const { url, missing } = useBlobUrl(model.links.sheet ?? `/v1/models/${model.name}/sheet`);
  return (
    <div class="sheet">
      {url !== null && <img src={url} alt={`Samples of ${model.name}`} />}
      {url === null && <p class="muted">{missing ? "no samples: it works on pictures that you give it" : "drawing samples …"}</p>}
    </div>
  );
}
