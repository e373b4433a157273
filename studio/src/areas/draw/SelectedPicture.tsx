/** The picture that was clicked: enlarged, with what is known of it. */
import { pngUrl, decodeBase64, save } from "../../lib/files";
import { number } from "../../lib/format";
import { Icon } from "../../components/Icon";
import { reproduce } from "./actions";
import { type Selection, selection as selected } from "./drawings";

const SIDE = 224;

export function SelectedPicture({ selection }: { selection: Selection }) {
  const { drawing, index } = selection;
  const { width, height } = drawing.image;
  const scale = Math.max(1, Math.floor(SIDE / Math.max(width, height)));
  const image = drawing.images[index] ?? "";
  const energy = drawing.energies?.[index];
  const accepted = drawing.accepted?.[index];
  const download = () => save(new Blob([decodeBase64(image)], { type: "image/png" }), `${drawing.request.model}-${drawing.request.seed}-${index}.png`);
  return (
    <section class="stack selected-picture" aria-label="Selected picture">
      <div class="row">
        <h2 class="section-name">
          Picture {index} of seed {drawing.request.seed}
        </h2>
        <button type="button" class="icon-button" aria-label="Close the picture" onClick={() => (selected.value = null)}>
          <Icon name="close" />
        </button>
      </div>
      <img class="pixelated" src={pngUrl(image)} width={width * scale} height={Math.max(12, height * scale)} alt={`Picture ${index} of seed ${drawing.request.seed}`} />
      <div class="stack">
        <p class="muted small">
          {width} × {height} pixels
          {typeof energy === "number" && ` · energy ${number(energy)}`}
          {accepted === false && " · condition not met"}
        </p>
        <div class="buttons">
          <button type="button" title="Sends the same request again" onClick={() => reproduce(drawing)}>
            Reproduce
          </button>
          <button type="button" onClick={download}>
            PNG
          </button>
        </div>
      </div>
    </section>
  );
}
