/** The pictures that were painted while the page is open, one for each size. */
import type { ImageSize } from "../../api/types";
import { Painting } from "../../components/paint/painting";
import { digit } from "../../components/paint/pixels";

const paintings = new Map<string, Painting>();

/** Returns the picture of a size. At first it is a digit, so that there is something to see. */
export function paintingOf(name: string, size: ImageSize): Painting {
  const known = paintings.get(name);
  if (known !== undefined) return known;
  const made = new Painting(size, digit("2", size));
  paintings.set(name, made);
  return made;
}
