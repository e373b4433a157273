/** Decodes pictures and draws them, in a thread of its own. A picture is kept whole, and small enough to be drawn fast. */
import { type Bitmaps, drawScene, type Scene } from "./draw";
import type { Decoded, WorkerRequest } from "./pictures";

/** More pixels than this are not kept in memory; the picture is shown smaller. */
const MAX_PIXELS = 64e6;
const PREVIEW_SIDE = 1600;

interface Scope {
  onmessage: ((event: MessageEvent<WorkerRequest>) => void) | null;
  postMessage: (message: Decoded) => void;
}
const scope = self as unknown as Scope;

const pictures = new Map<number, Bitmaps>();
const canvases = new Map<number, OffscreenCanvas>();
/** What the next frame shows on each canvas; a newer scene replaces an older one that was not drawn yet. */
const scenes = new Map<number, Scene>();

scope.onmessage = ({ data }) => {
  if (data.type === "decode") void decode(data.id, data.file);
  else if (data.type === "release") release(data.id);
  else if (data.type === "attach") canvases.set(data.pane, data.canvas);
  else if (data.type === "detach") detach(data.pane);
  else {
    if (scenes.size === 0) requestAnimationFrame(drawAll);
    scenes.set(data.pane, data.scene);
  }
};

function drawAll(): void {
  for (const [pane, scene] of scenes) {
    const canvas = canvases.get(pane);
    if (canvas !== undefined) drawScene(canvas, scene, pictures);
  }
  scenes.clear();
}

function detach(pane: number): void {
  canvases.delete(pane);
}

function release(id: number): void {
  const bitmaps = pictures.get(id);
  pictures.delete(id);
  bitmaps?.whole.close();
  bitmaps?.preview.close();
}

async function decode(id: number, file: Blob): Promise<void> {
  try {
    const whole = await createImageBitmap(file);
    const { width, height } = whole;
    const shrink = Math.min(1, Math.sqrt(MAX_PIXELS / (width * height)));
    const kept = shrink < 1 ? await scaled(whole, shrink) : whole;
    if (kept !== whole) whole.close();
    const preview = await scaled(kept, Math.min(1, PREVIEW_SIDE / Math.max(kept.width, kept.height)));
    pictures.set(id, { whole: kept, preview });
    scope.postMessage({ id, size: { width, height } });
  } catch {
    scope.postMessage({ id, size: null });
  }
}

function scaled(picture: ImageBitmap, scale: number): Promise<ImageBitmap> {
  if (scale === 1) return createImageBitmap(picture);
  const size = { resizeWidth: Math.max(1, Math.round(picture.width * scale)), resizeHeight: Math.max(1, Math.round(picture.height * scale)) };
  return createImageBitmap(picture, { ...size, resizeQuality: "medium" });
}
