/** Runs the newest of many requests: at most one is in flight and one waits; the others are dropped. */

/** Calls `run` for submitted inputs, never twice at the same time. A result is always of the newest input that ran. */
export class Latest<Input> {
  readonly #run: (input: Input, signal: AbortSignal) => Promise<void>;
  #running: AbortController | null = null;
  #pending: { input: Input } | null = null;

  constructor(run: (input: Input, signal: AbortSignal) => Promise<void>) {
    this.#run = run;
  }

  /** Runs `run(input)`, now or when the running call has ended; replaces the input that waits. */
  submit(input: Input): void {
    this.#pending = { input };
    if (this.#running === null) void this.#next();
  }

  /** Cancels the running call, and drops the input that waits. */
  cancel(): void {
    this.#pending = null;
    this.#running?.abort();
  }

  /** Whether an input waits for the running call to end. */
  get waits(): boolean {
    return this.#pending !== null;
  }

  async #next(): Promise<void> {
    while (this.#pending !== null) {
      const { input } = this.#pending;
      this.#pending = null;
      this.#running = new AbortController();
      try {
        await this.#run(input, this.#running.signal);
      } catch (error) {
        console.error(error); // `run` shows its own errors
      }
    }
    this.#running = null;
  }
}
