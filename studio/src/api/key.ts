/** The API key: asked for when the service wants one, and kept in the session of this browser tab only. */
import { signal } from "@preact/signals";

const STORAGE_KEY = "reverie-key";

/** The key in use; null without one. */
export const key = signal<string | null>(sessionStorage.getItem(STORAGE_KEY));

/** Why a key is asked for, in the service's words; null while none is needed. */
export const keyNeeded = signal<string | null>(null);

let waiting: (() => void)[] = [];

/** Returns the header fields that carry the key. */
export function keyHeaders(): Record<string, string> {
  return key.value === null ? {} : { Authorization: `Bearer ${key.value}` };
}

/** Asks for a key, and returns when one was entered. `rejected` is the key that the service did not accept. */
export async function askForKey(detail: string, rejected: string | null, abort?: AbortSignal | null): Promise<void> {
  if (key.value !== rejected) return; // another request has asked already, and got one
  abort?.throwIfAborted();
  keyNeeded.value = detail;
  await new Promise<void>((resolve, reject) => {
    waiting.push(resolve);
    abort?.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")), { once: true });
  });
}

/** Uses a key from now on, and continues the requests that waited for one. */
export function enterKey(entered: string): void {
  sessionStorage.setItem(STORAGE_KEY, entered);
  key.value = entered;
  keyNeeded.value = null;
  const resumed = waiting;
  waiting = [];
  for (const resume of resumed) resume();
}

/** Forgets the key. */
export function forgetKey(): void {
  sessionStorage.removeItem(STORAGE_KEY);
  key.value = null;
}
