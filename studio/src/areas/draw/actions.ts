/** What buttons and keys of the area Draw do. */
import { address, go } from "../../router";
import { currentModel } from "../../state/service";
import { draw, type Drawing, drawings, selection, shown } from "./drawings";
import { paramsOf, requestOf } from "./request";

/** Sends the request of the address once more. */
export function drawAgain(): void {
  const model = currentModel.peek();
  if (model !== null) draw(model, requestOf(model, address.peek().params), { again: true });
}

/** Sends the request of a drawing once more, by the version that made it. */
export function reproduce({ request, version }: Drawing): void {
  const model = currentModel.peek();
  if (model === null) return;
  const pinned = { ...request, version: version === model.version ? request.version : version };
  go("draw", paramsOf(pinned));
  draw(model, pinned, { again: true });
}

/** Selects a picture; a second click on it selects none. */
export function select(id: number, index: number): void {
  const drawing = drawings.peek().find((one) => one.id === id);
  const same = selection.peek()?.drawing.id === id && selection.peek()?.index === index;
  selection.value = drawing === undefined || same ? null : { drawing, index };
}

/** Selects the next picture, from the first of the newest drawing to the last of the oldest. */
export function step(by: number): void {
  const all = shown.peek();
  const selected = selection.peek();
  const first = all[0];
  if (first === undefined) return;
  if (selected === null) {
    selection.value = { drawing: first, index: 0 };
    return;
  }
  const index = selected.index + by;
  const place = all.findIndex(({ id }) => id === selected.drawing.id);
  const other = all[place + by];
  if (selected.drawing.images[index] !== undefined) selection.value = { drawing: selected.drawing, index };
  else if (other !== undefined) selection.value = { drawing: other, index: by > 0 ? 0 : other.images.length - 1 };
}
