/** One picture of a dataset, enlarged, to look at and to save. */
import type { Dataset, DatasetImage } from "../../api/types";
import { request } from "../../api/send";
import { Icon } from "../../components/Icon";
import { useBlobUrl } from "../../components/RemotePicture";
import { save } from "../../lib/files";
import { setParams } from "../../router";

const SIDE = 224;

export function PictureDetail({ dataset, picture }: { dataset: Dataset; picture: DatasetImage }) {
  const { width, height, name } = dataset;
  const { index, label } = picture;
  const { url } = useBlobUrl(picture.links.image);
  const scale = Math.max(1, Math.floor(SIDE / Math.max(width, height)));
  const download = async () => save(await (await request(picture.links.image)).blob(), `${name}-${index}.png`);
  return (
    <section class="picture-detail" aria-label={`Picture ${index}`}>
      {url !== null && <img class="pixelated" src={url} width={width * scale} height={Math.max(12, height * scale)} alt={`Picture ${index} of ${name}`} />}
      <div class="stack">
        <h3>Picture {index}</h3>
        {label !== undefined && label !== null && <p class="muted">label {label}</p>}
        <div class="buttons">
          <button type="button" onClick={() => void download()}>
            PNG
          </button>
          <button type="button" class="icon-button" aria-label="Close the picture" onClick={() => setParams({ image: null }, { replace: true })}>
            <Icon name="close" />
          </button>
        </div>
      </div>
    </section>
  );
}
