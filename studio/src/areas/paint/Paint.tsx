/** Paint: a picture by hand, and what every model of its size says about it; a mask, and what is behind it. */
import { useEffect, useMemo } from "preact/hooks";
import type { Model } from "../../api/types";
import { Segmented } from "../../components/form/Segmented";
import { NoModel } from "../../components/NoModel";
import "../../components/paint/paint-grid.css";
import { address, setParams } from "../../router";
import { models } from "../../state/service";
import { Easel } from "./Easel";
import "./paint.css";
import { ModelRow } from "./ModelRow";
import { paintingOf } from "./paintings";
import { Reader } from "./readings";
import { pngOf } from "../../components/paint/picture";
import { sizesOf } from "./sizes";

export default function Paint() {
  const sizes = sizesOf(models.data ?? []);
  const asked = address.value.params.get("size");
  const size = sizes.find(({ name }) => name === asked) ?? sizes[0];
  if (size === undefined) return <NoModel title="No model reads pictures">Train one: a VAE, a BiHM or an EBGAN.</NoModel>;
  return (
    <div class="page paint">
      {sizes.length > 1 && (
        <div class="paint-sizes">
          <Segmented label="Size" choices={sizes.map(({ name }) => name)} value={size.name} onChange={(name) => setParams({ size: name === sizes[0]?.name ? null : name })} />
        </div>
      )}
      <PaintOfSize key={size.name} name={size.name} models={size.models} />
    </div>
  );
}

function PaintOfSize({ name, models: able }: { name: string; models: readonly Model[] }) {
  const [first] = able;
  const painting = useMemo(() => (first === undefined ? null : paintingOf(name, first.image)), [name]);
  const names = able.map((model) => `${model.name}@${model.version}`).join();
  const readers = useMemo(() => able.map((model) => new Reader(model)), [names]);
  const pixels = painting?.pixels.value;
  useEffect(() => {
    if (pixels === undefined) return;
    const image = pngOf(pixels);
    for (const reader of readers) reader.read(image);
  }, [pixels, readers]);
  useEffect(() => () => readers.forEach((reader) => reader.cancel()), [readers]);
  if (painting === null) return null;
  return (
    <div class="paint-columns">
      <Easel painting={painting} models={able} />
      <section class="readings" aria-label="What the models say">
        {readers.map((reader) => (
          <ModelRow key={reader.model.name} reader={reader} />
        ))}
      </section>
    </div>
  );
}
