/** What a model draws: some samples, in one picture. */
import { useEffect, useRef, useState } from "preact/hooks";
import { runForFile } from "../../api/operations";
import type { Model } from "../../api/types";
import { isVector } from "../../state/service";

const SIDE = 224;

/** Sheets that were drawn while the page is open, by model and version. */
const sheets = new Map<string, string>();

export function SampleSheet({ model }: { model: Model }) {
  const ref = `${model.name}@${model.version}`;
  const element = useRef<HTMLDivElement>(null);
  const [url, setUrl] = useState(sheets.get(ref));
  const [missing, setMissing] = useState(!("samples" in model.operations));
  useEffect(() => {
    const known = sheets.get(ref);
    setUrl(known);
    if (known !== undefined || missing || element.current === null) return;
    const abort = new AbortController();
    const observer = new IntersectionObserver(([entry]) => {
      if (!entry?.isIntersecting) return;
      observer.disconnect();
      drawSheet(model, ref, abort.signal).then(setUrl, () => setMissing(!abort.signal.aborted));
    });
    observer.observe(element.current);
    return () => {
      observer.disconnect();
      abort.abort();
    };
  }, [ref]);
  return (
    <div class="sheet" ref={element}>
      {url !== undefined && <img class="pixelated" src={url} alt={`Samples of ${model.name}`} />}
      {missing && <p class="muted">no samples: this model does not draw</p>}
    </div>
  );
}

async function drawSheet(model: Model, ref: string, signal: AbortSignal): Promise<string> {
  const count = isVector(model) ? 18 : Math.max(1, Math.floor(SIDE / model.image.width)) ** 2;
  const url = URL.createObjectURL(await runForFile("samples", { model: ref, seed: 1, count }, "image/png", { signal }));
  sheets.set(ref, url);
  return url;
}
