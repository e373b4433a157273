/** A picture that is being painted, its mask, and what can be undone. */
import { batch, type Signal, signal } from "@preact/signals";
import { type Brush, blank, type Pixels, type Place, type Size, stroke } from "./pixels";

interface State {
  pixels: Pixels;
  mask: Pixels;
}

/** Which of the two pictures a stroke changes. */
export type Layer = keyof State;

const MAX_UNDO = 100;

export class Painting {
  readonly pixels: Signal<Pixels>;
  /** White where the picture is hidden. */
  readonly mask: Signal<Pixels>;
  /** How many changes can be undone. */
  readonly undoable: Signal<number> = signal(0);
  readonly #undo: State[] = [];

  constructor(size: Size, first: Pixels = blank(size)) {
    this.pixels = signal(first);
    this.mask = signal(blank(size));
  }

  /** Begins a change, to which `undo` returns. */
  begin(): void {
    this.#undo.push({ pixels: this.pixels.peek(), mask: this.mask.peek() });
    if (this.#undo.length > MAX_UNDO) this.#undo.shift();
    this.undoable.value = this.#undo.length;
  }

  stroke(layer: Layer, from: Place, to: Place, brush: Brush): void {
    this[layer].value = stroke(this[layer].peek(), from, to, brush);
  }

  /** Replaces a picture by another. */
  replace(layer: Layer, pixels: Pixels): void {
    this.begin();
    this[layer].value = pixels;
  }

  /** Removes the picture and its mask. */
  clear(): void {
    this.begin();
    batch(() => {
      this.pixels.value = blank(this.pixels.peek());
      this.mask.value = blank(this.mask.peek());
    });
  }

  undo(): void {
    const state = this.#undo.pop();
    if (state === undefined) return;
    batch(() => {
      this.pixels.value = state.pixels;
      this.mask.value = state.mask;
      this.undoable.value = this.#undo.length;
    });
  }
}
