/** What models say about a painted picture, while it is being painted. */
import { type Signal, signal } from "@preact/signals";
import { Latest } from "../../api/latest";
import { run } from "../../api/operations";
import { problemOf } from "../../api/problem";
import type { Model, Problem, Results } from "../../api/types";
import { Debounce } from "../../state/timing";

const SEED = 1;
/** Importance samples of a likelihood: its standard error is shown with it. */
const LIKELIHOOD_SAMPLES = 500;
/** A likelihood takes longer than the rest: it is estimated when the hand rests. */
const REST_MS = 350;

export interface Reading {
  energies?: Results["energies"];
  reconstruction?: string;
  encoding?: Results["encodings"];
  likelihood?: Results["likelihoods"] | null;
  problem: Problem | null;
}

/** Asks one model about the newest picture. */
export class Reader {
  readonly reading: Signal<Reading> = signal({ problem: null });
  readonly model: Model;
  readonly #quick: Latest<string>;
  readonly #slow: Latest<string>;
  readonly #rest = new Debounce(REST_MS);

  constructor(model: Model) {
    this.model = model;
    this.#quick = new Latest((image, abort) => this.#update(() => this.#readQuickly(image, abort)));
    this.#slow = new Latest((image, abort) => this.#update(() => this.#estimate(image, abort)));
  }

  /** Reads a PNG, given as base64. */
  read(image: string): void {
    this.#quick.submit(image);
    this.#slow.cancel();
    if ("likelihoods" in this.model.operations) {
      this.#set({ likelihood: null });
      this.#rest.call(() => this.#slow.submit(image));
    }
  }

  cancel(): void {
    this.#rest.cancel();
    this.#quick.cancel();
    this.#slow.cancel();
  }

  async #readQuickly(image: string, signal: AbortSignal): Promise<Partial<Reading>> {
    const { name, operations } = this.model;
    const body = { model: name, seed: SEED, images: [image] };
    const options = { signal };
    const [energies, reconstructions, encoding] = await Promise.all([
      "energies" in operations ? run("energies", body, options) : null,
      "reconstructions" in operations ? run("reconstructions", body, options) : null,
      "encodings" in operations ? run("encodings", body, options) : null,
    ]);
    const reconstruction = reconstructions?.images[0];
    return { ...(energies && { energies }), ...(reconstruction !== undefined && { reconstruction }), ...(encoding && { encoding }) };
  }

  async #estimate(image: string, signal: AbortSignal): Promise<Partial<Reading>> {
    const body = { model: this.model.name, seed: SEED, images: [image], options: { k: LIKELIHOOD_SAMPLES } };
    return { likelihood: await run("likelihoods", body, { signal }) };
  }

  async #update(read: () => Promise<Partial<Reading>>): Promise<void> {
    try {
      this.#set({ ...(await read()), problem: null });
    } catch (error) {
      const problem = problemOf(error);
      if (problem !== null) this.#set({ problem });
    }
  }

  #set(changes: Partial<Reading>): void {
    this.reading.value = { ...this.reading.peek(), ...changes };
  }
}
