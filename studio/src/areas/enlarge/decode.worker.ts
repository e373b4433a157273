/** Decodes pictures in a thread of its own: whole, and small enough to be drawn at once. */
import type { Decoded, DecodeRequest } from "./decode";

/** More pixels than this are not kept in memory; the picture is shown smaller. */
const MAX_PIXELS = 64e6;
const PREVIEW_SIDE = 1600;

interface Scope {
  onmessage: ((event: MessageEvent<DecodeRequest>) => void) | null;
  postMessage: (message: Decoded, transfer: Transferable[]) => void;
}
const scope = self as unknown as Scope;

scope.onmessage = ({ data: { id, file } }) => void decode(id, file);

async function decode(id: number, file: Blob): Promise<void> {
  try {
    const whole = await createImageBitmap(file);
    const { width, height } = whole;
    const shrink = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
    const kept = shrink < 1 ? await scaled(whole, shrink) : whole;
    if (kept !== whole) whole.close();
    const preview = await scaled(kept, Math.min(1, PREVIEW_SIDE / Math.max(kept.width, kept.height)));
    scope.postMessage({ id, width, height, whole: kept, preview }, [kept, preview]);
  } catch {
    scope.postMessage({ id, width: 0, height: 0, whole: null, preview: null }, []);
  }
}

function scaled(picture: ImageBitmap, scale: number): Promise<ImageBitmap> {
  if (scale === 1) return createImageBitmap(picture);
  const size = { resizeWidth: Math.max(1, Math.round(picture.width * scale)), resizeHeight: Math.max(1, Math.round(picture.height * scale)) };
  return createImageBitmap(picture, { ...size, resizeQuality: "medium" });
}
