/** The layer of a model whose states the sliders change. */
import type { Layers } from "./codes";

interface Props {
  layers: Layers;
  layer: number;
  onChoose: (layer: number) => void;
}

export function LayerChoice({ layers: { option, sizes }, layer, onChoose }: Props) {
  return (
    <label class="field">
      <span class="field-name">{option}</span>
      <select value={String(layer)} onChange={(event) => onChoose(Number(event.currentTarget.value))}>
        {sizes.map((size, index) => (
          <option key={index} value={String(index)}>
            {index}: {size} numbers{index === 0 ? ", the lowest" : ""}
          </option>
        ))}
      </select>
      {layer > 0 && <p class="muted small">The layers below it are drawn, with the same seed for each picture.</p>}
    </label>
  );
}
