/** Reads small PNGs without the browser's decoder, which takes several messages between its processes for each one. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const CHANNELS: Readonly<Record<number, number>> = { 0: 1, 2: 3 };
/** Bytes of a chunk besides its data: length, type and checksum. */
const CHUNK_BYTES = 12;

interface Header {
  width: number;
  height: number;
  channels: number;
}

/**
 * Returns the pixels of a PNG as the service writes its pictures: eight bits, grey or RGB, lines unfiltered and not
 * interlaced. Returns null for any other file.
 */
export async function readPng(file: Uint8Array<ArrayBuffer>): Promise<ImageData | null> {
  if (SIGNATURE.some((byte, index) => file[index] !== byte)) return null;
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  let header: Header | null = null;
  const data: Uint8Array<ArrayBuffer>[] = [];
  for (let at = SIGNATURE.length; at + CHUNK_BYTES <= file.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...file.subarray(at + 4, at + 8));
    if (type === "IHDR") header = headerOf(view, at + 8);
    if (type === "IDAT") data.push(file.subarray(at + 8, at + 8 + length));
    at += length + CHUNK_BYTES;
  }
  return header === null ? null : pixelsOf(await inflated(data), header);
}

function headerOf(view: DataView, at: number): Header | null {
  const channels = CHANNELS[view.getUint8(at + 9)];
  const plain = view.getUint8(at + 8) === 8 && view.getUint8(at + 12) === 0;
  return channels === undefined || !plain ? null : { width: view.getUint32(at), height: view.getUint32(at + 4), channels };
}

async function inflated(parts: readonly Uint8Array<ArrayBuffer>[]): Promise<Uint8Array> {
  const { readable, writable } = new DecompressionStream("deflate");
  const writer = writable.getWriter();
  const [chunks] = await Promise.all([collected(readable), ...parts.map((part) => writer.write(part)), writer.close()]);
  const [only] = chunks;
  if (only !== undefined && chunks.length === 1) return only;
  const joined = new Uint8Array(chunks.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const chunk of chunks) {
    joined.set(chunk, at);
    at += chunk.length;
  }
  return joined;
}

async function collected(stream: ReadableStream<Uint8Array>): Promise<Uint8Array[]> {
  const chunks: Uint8Array[] = [];
  const reader = stream.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) chunks.push(next.value);
  return chunks;
}

/** Returns lines of pixels, each after its filter byte, as an image; null if a line is filtered or missing. */
function pixelsOf(lines: Uint8Array, { width, height, channels }: Header): ImageData | null {
  const stride = 1 + width * channels;
  if (lines.length !== stride * height) return null;
  const rgba = new Uint8ClampedArray(4 * width * height);
  for (let y = 0, to = 0; y < height; y++) {
    let from = y * stride;
    if (lines[from++] !== 0) return null;
    for (let x = 0; x < width; x++, to += 4, from += channels) {
      rgba[to] = lines[from] ?? 0;
      rgba[to + 1] = lines[channels === 1 ? from : from + 1] ?? 0;
      rgba[to + 2] = lines[channels === 1 ? from : from + 2] ?? 0;
      rgba[to + 3] = 255;
    }
  }
  return new ImageData(rgba, width, height);
}
