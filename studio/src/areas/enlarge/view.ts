/** What the views of the area share: zoom, divider, and which method is shown. */
import { signal } from "@preact/signals";
import type { Viewport } from "./viewport";

/** Null shows the whole picture. */
export const viewport = signal<Viewport | null>(null);
export const divider = signal(0.5);
/** Whether only the picture before is shown, as long as a key is held. */
export const holdsBefore = signal(false);
/** The method beside the photograph; null means the newest one. */
export const shownMethod = signal<string | null>(null);
