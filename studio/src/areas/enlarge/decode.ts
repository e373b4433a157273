/** Pictures as bitmaps: decoded in a worker, so that a large one does not stop the page. */
import { localProblem, ProblemError } from "../../api/problem";

export interface DecodeRequest {
  id: number;
  file: Blob;
}

export interface Decoded {
  id: number;
  /** Of the file, in pixels. */
  width: number;
  height: number;
  /** Null if the file is no picture. Smaller than the file's picture if that is too large to keep. */
  whole: ImageBitmap | null;
  preview: ImageBitmap | null;
}

/** A decoded picture. */
export interface Picture {
  width: number;
  height: number;
  whole: ImageBitmap;
  preview: ImageBitmap;
}

const waiting = new Map<number, (decoded: Decoded) => void>();
let worker: Worker | null = null;
let lastId = 0;

/** Decodes a picture file. Throws ProblemError if it is none. */
export async function decodePicture(file: Blob, name: string): Promise<Picture> {
  worker ??= start();
  const id = ++lastId;
  const { whole, preview, width, height } = await new Promise<Decoded>((resolve) => {
    waiting.set(id, resolve);
    worker?.postMessage({ id, file } satisfies DecodeRequest);
  });
  if (whole === null || preview === null) {
    throw new ProblemError(localProblem("Not a picture", `${name} is not a picture that the browser can read; PNG, JPEG and WebP would work.`));
  }
  return { width, height, whole, preview };
}

/** Frees the memory of a picture. */
export function release(picture: Picture): void {
  picture.whole.close();
  picture.preview.close();
}

function start(): Worker {
  const started = new Worker(new URL("./decode.worker.ts", import.meta.url), { type: "module" });
  started.onmessage = ({ data }: MessageEvent<Decoded>) => {
    waiting.get(data.id)?.(data);
    waiting.delete(data.id);
  };
  started.onerror = () => {
    for (const [id, resolve] of waiting) resolve({ id, width: 0, height: 0, whole: null, preview: null });
    waiting.clear();
  };
  return started;
}
