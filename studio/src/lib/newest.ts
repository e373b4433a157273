/** Tells the newest of several asynchronous calls from older ones, whose results are to be dropped. */
export class Newest {
  #last = 0;

  /** Starts a call: returns a function that says whether it is still the newest. */
  start(): () => boolean {
    const call = ++this.#last;
    return () => call === this.#last;
  }
}
