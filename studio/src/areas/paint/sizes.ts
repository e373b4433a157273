/** The sizes of pictures that can be painted: one picture is read by all models of its size. */
import type { Model } from "../../api/types";

const READS = ["energies", "reconstructions", "encodings", "likelihoods"];

export interface PaintSize {
  /** Such as `28x28`. */
  name: string;
  models: readonly Model[];
}

/** Returns the sizes of the models that read grey pictures, the largest first. */
export function sizesOf(models: readonly Model[]): PaintSize[] {
  const sizes = new Map<string, Model[]>();
  for (const model of models) {
    const { channels, width, height } = model.image;
    if (channels !== 1 || height === 1 || !READS.some((operation) => operation in model.operations)) continue;
    const name = `${width}x${height}`;
    sizes.set(name, [...(sizes.get(name) ?? []), model]);
  }
  const area = ({ models: [first] }: PaintSize) => (first === undefined ? 0 : first.image.width * first.image.height);
  return [...sizes].map(([name, listed]) => ({ name, models: listed })).sort((a, b) => area(b) - area(a));
}
