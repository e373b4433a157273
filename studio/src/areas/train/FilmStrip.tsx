/** What the model of a training drew after its epochs: one preview large, all of them as a film strip. */
import { useEffect, useRef } from "preact/hooks";
import type { TrainingPreview } from "../../api/types";
import { RemotePicture, useBlobUrl } from "../../components/RemotePicture";
import { number } from "../../lib/format";
import { setParams } from "../../router";

interface Props {
  previews: readonly TrainingPreview[];
  shown: TrainingPreview | undefined;
  running: boolean;
}

export function FilmStrip({ previews, shown, running }: Props) {
  const strip = useRef<HTMLOListElement>(null);
  const last = previews.at(-1);
  useEffect(() => {
    strip.current?.querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [shown?.epoch]);
  return (
    <section class="film" aria-label="Previews">
      <h3>{shown ? `Preview after epoch ${number(shown.epoch)}` : "Preview"}</h3>
      {shown ? <Frame preview={shown} /> : <p class="film-frame film-none muted">{running ? "The first preview comes with the first epoch." : "This training has no previews."}</p>}
      <ol class="film-strip" ref={strip} aria-label="Previews by epoch">
        {previews.map((preview) => (
          <li key={preview.epoch}>
            <button
              type="button"
              class="film-thumb"
              aria-pressed={preview === shown}
              onClick={() => setParams({ epoch: preview === last ? null : preview.epoch }, { replace: true })}
            >
              <RemotePicture path={preview.links.image} alt="" />
              <span>
                <span class="hidden">Epoch </span>
                {number(preview.epoch)}
              </span>
            </button>
          </li>
        ))}
      </ol>
    </section>
  );
}

/** The old picture stays until the new one is there. */
function Frame({ preview }: { preview: TrainingPreview }) {
  const { url } = useBlobUrl(preview.links.image);
  return <div class="film-frame">{url !== null && <img class="pixelated" src={url} alt={`Samples after epoch ${preview.epoch}`} />}</div>;
}
