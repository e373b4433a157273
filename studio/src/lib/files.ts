/** Pictures and files: from base64, and to the disk. */

/** Returns the address of a PNG that is given as base64. */
export function pngUrl(base64: string): string {
  return `data:image/png;base64,${base64}`;
}

/** Returns the bytes of a base64 text. */
export function decodeBase64(text: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Saves a file to the disk of the reader. */
export function save(content: Blob, name: string): void {
  const url = URL.createObjectURL(content);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Returns a ZIP of PNGs that are given as base64, named `NAME-0000.png` and so on. */
export async function zipOf(images: readonly string[], name: string): Promise<Blob> {
  const { downloadZip } = await import("client-zip");
  const digits = String(images.length - 1).length;
  const files = images.map((image, index) => ({
    name: `${name}-${String(index).padStart(digits, "0")}.png`,
    input: decodeBase64(image),
  }));
  return downloadZip(files).blob();
}
