/** What was made in this browser: kept in IndexedDB, at most 200 MB; the oldest entries go first. */
import { signal } from "@preact/signals";
import { type DBSchema, type IDBPDatabase, openDB } from "idb";

export const MAX_BYTES = 200_000_000;

export interface Entry {
  /** The same thing made again replaces its entry; such as the area and the request as JSON. */
  id: string;
  area: string;
  /** Milliseconds since 1970. */
  at: number;
  /** About how much storage it takes. */
  bytes: number;
}

interface Schema extends DBSchema {
  entries: { key: string; value: Entry; indexes: { at: number } };
  /** What belongs to each entry: apart, so that counting bytes does not read it. */
  contents: { key: string; value: unknown };
}

/** Counts changes, so that what shows the history reads it again. */
export const historyVersion = signal(0);

let database: Promise<IDBPDatabase<Schema>> | null = null;

function open(): Promise<IDBPDatabase<Schema>> {
  database ??= openDB<Schema>("reverie-studio", 1, {
    upgrade(created) {
      created.createObjectStore("entries", { keyPath: "id" }).createIndex("at", "at");
      created.createObjectStore("contents");
    },
  });
  return database;
}

/** Adds an entry with its content, and removes the oldest ones beyond `MAX_BYTES`. */
export async function remember(entry: Entry, content: unknown): Promise<void> {
  const transaction = (await open()).transaction(["entries", "contents"], "readwrite");
  const entries = transaction.objectStore("entries");
  await Promise.all([entries.put(entry), transaction.objectStore("contents").put(content, entry.id)]);
  let bytes = 0;
  for (const { id, bytes: size } of (await entries.index("at").getAll()).reverse()) {
    bytes += size;
    if (bytes > MAX_BYTES) await Promise.all([entries.delete(id), transaction.objectStore("contents").delete(id)]);
  }
  await transaction.done;
  historyVersion.value++;
}

/** Returns the contents of the newest entries of an area, newest first. */
export async function recall(area: string, limit: number): Promise<unknown[]> {
  const transaction = (await open()).transaction(["entries", "contents"]);
  const all = await transaction.objectStore("entries").index("at").getAll();
  const found = all.filter((entry) => entry.area === area).slice(-limit).reverse();
  return Promise.all(found.map(({ id }) => transaction.objectStore("contents").get(id)));
}

/** Removes all entries of an area. */
export async function forget(area: string): Promise<void> {
  const transaction = (await open()).transaction(["entries", "contents"], "readwrite");
  for (const entry of await transaction.objectStore("entries").getAll()) {
    if (entry.area !== area) continue;
    void transaction.objectStore("entries").delete(entry.id);
    void transaction.objectStore("contents").delete(entry.id);
  }
  await transaction.done;
  historyVersion.value++;
}
