/** Pictures and the canvases that show them. A worker decodes and draws, so that a large picture does not stop the page. */
import { localProblem, ProblemError } from "../../api/problem";
import type { Scene } from "./draw";

/** A decoded picture. Its pixels are in the worker. */
export interface Picture {
  id: number;
  width: number;
  height: number;
}

export type WorkerRequest =
  | { type: "decode"; id: number; file: Blob }
  | { type: "release"; id: number }
  | { type: "attach"; pane: number; canvas: OffscreenCanvas }
  | { type: "detach"; pane: number }
  | { type: "draw"; pane: number; scene: Scene };

export interface Decoded {
  id: number;
  /** Of the file, in pixels; null if it is no picture. */
  size: { width: number; height: number } | null;
}

/** A canvas that the worker draws on. */
export interface Painter {
  draw: (scene: Scene) => void;
  detach: () => void;
}

const waiting = new Map<number, (decoded: Decoded) => void>();
let worker: Worker | null = null;
let lastId = 0;

/** Decodes a picture file. Throws ProblemError if it is none. */
export async function decodePicture(file: Blob, name: string): Promise<Picture> {
  const id = ++lastId;
  const { size } = await new Promise<Decoded>((resolve) => {
    waiting.set(id, resolve);
    send({ type: "decode", id, file });
  });
  if (size === null) {
    throw new ProblemError(localProblem("Not a picture", `${name} is not a picture that the browser can read; PNG, JPEG and WebP would work.`));
  }
  return { id, ...size };
}

/** Frees the memory of a picture. */
export function release({ id }: Picture): void {
  send({ type: "release", id });
}

/** Gives a canvas, for good, to the worker. */
export function attach(canvas: HTMLCanvasElement): Painter {
  const pane = ++lastId;
  const offscreen = canvas.transferControlToOffscreen();
  send({ type: "attach", pane, canvas: offscreen }, [offscreen]);
  return { draw: (scene) => send({ type: "draw", pane, scene }), detach: () => send({ type: "detach", pane }) };
}

function send(request: WorkerRequest, transfer: Transferable[] = []): void {
  worker ??= start();
  worker.postMessage(request, transfer);
}

function start(): Worker {
  const started = new Worker(new URL("./pictures.worker.ts", import.meta.url), { type: "module" });
  started.onmessage = ({ data }: MessageEvent<Decoded>) => {
    waiting.get(data.id)?.(data);
    waiting.delete(data.id);
  };
  started.onerror = () => {
    for (const [id, resolve] of waiting) resolve({ id, size: null });
    waiting.clear();
  };
  return started;
}
