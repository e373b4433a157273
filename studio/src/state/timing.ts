/** What lasts as long as a component is shown: delayed calls, and URLs of files in memory. */
import { useEffect, useMemo, useState } from "preact/hooks";

/** Calls the last of several functions, once none came for a while. */
export class Debounce {
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #ms: number;

  constructor(ms: number) {
    this.#ms = ms;
  }

  /** Calls `action` after the delay; replaces one that waits. */
  call(action: () => void): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, this.#ms);
  }

  cancel(): void {
    clearTimeout(this.#timer);
  }
}

/** Returns a `Debounce` that is cancelled when the component goes. */
export function useDebounce(ms: number): Debounce {
  const debounce = useMemo(() => new Debounce(ms), [ms]);
  useEffect(() => () => debounce.cancel(), [debounce]);
  return debounce;
}

/** Returns the URL of a file in the page's memory; null without one. */
export function useObjectUrl(file: Blob | null): string | null {
  const [url, setUrl] = useState<string | null>(null);
  useEffect(() => {
    if (file === null) {
      setUrl(null);
      return;
    }
    const made = URL.createObjectURL(file);
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [file]);
  return url;
}
