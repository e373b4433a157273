/** Something that is loaded from the service, and loaded again: its data, its error, or neither yet. */
import { type Signal, signal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { problemOf } from "../api/problem";
import type { Problem } from "../api/types";

export interface Loaded<T> {
  data: T | null;
  problem: Problem | null;
}

/** A signal of what `load` returns. Data stays while it is loaded again, and when that fails. */
export class Resource<T> {
  readonly state: Signal<Loaded<T>> = signal({ data: null, problem: null });
  readonly #load: (signal: AbortSignal) => Promise<T>;
  #running: AbortController | null = null;

  constructor(load: (signal: AbortSignal) => Promise<T>) {
    this.#load = load;
  }

  get data(): T | null {
    return this.state.value.data;
  }

  /** Loads it, in place of a load that is under way. */
  async reload(): Promise<void> {
    this.cancel();
    const abort = new AbortController();
    this.#running = abort;
    let next: Loaded<T>;
    try {
      next = { data: await this.#load(abort.signal), problem: null };
    } catch (error) {
      next = { data: this.state.peek().data, problem: problemOf(error) };
    }
    if (this.#running === abort) {
      this.#running = null;
      this.state.value = next;
    }
  }

  cancel(): void {
    this.#running?.abort();
    this.#running = null;
  }
}

/** Loads something while a component is shown, again whenever `key` changes. */
export function useResource<T>(key: string, load: (signal: AbortSignal) => Promise<T>): Resource<T> {
  const [resource, setResource] = useState(() => new Resource(load));
  useEffect(() => {
    const fresh = new Resource(load);
    setResource(fresh);
    void fresh.reload();
    return () => fresh.cancel();
  }, [key]);
  return resource;
}

/** Calls `action` now, and `seconds()` after each call has ended; not while the page is hidden. */
export function poll(action: () => Promise<void>, seconds: () => number): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let running = false;
  let stopped = false;
  const step = async () => {
    if (running) return; // a page that was hidden and is shown again: one call at a time
    clearTimeout(timer);
    running = true;
    try {
      if (document.visibilityState === "visible") await action();
    } finally {
      running = false;
      if (!stopped) timer = setTimeout(() => void step(), seconds() * 1000);
    }
  };
  const onVisible = () => {
    if (document.visibilityState === "visible") void step();
  };
  document.addEventListener("visibilitychange", onVisible);
  void step();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", onVisible);
  };
}
