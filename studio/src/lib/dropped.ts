/** Files that were dropped or chosen, with the paths that they have in their folder. */

export interface NamedFile {
  path: string;
  file: File;
}

const HIDDEN = /(^|\/)\./;
/** Files that the service reads as they are; anything else is packed into a ZIP. */
const DATA = /\.(zip|npz|gz|idx[0-9]*|idx[0-9]*-ubyte)$|-ubyte$/i;

/** Returns the files of a drop, those of folders included. Hidden files are left out. */
export async function droppedFiles(items: DataTransferItemList): Promise<NamedFile[]> {
  // the list is empty after the event: all entries are asked for before the first `await`
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const files = await Promise.all(entries.map(filesOf));
  return visible(files.flat());
}

/** Returns the files of an `<input type="file">`, or of a folder that was chosen in it. */
export function chosenFiles(list: FileList): NamedFile[] {
  return visible([...list].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
}

/** Whether the files are one that the service reads as it is. */
export function isData(files: readonly NamedFile[]): boolean {
  return files.length === 1 && DATA.test(files[0]?.path ?? "");
}

/** Returns a name for a dataset of these files: letters, digits, `.`, `-` and `_`. */
export function nameFor(files: readonly NamedFile[]): string {
  const path = files[0]?.path ?? "";
  const base = path.includes("/") ? path.slice(0, path.indexOf("/")) : path.replace(/(\.(zip|npz|gz|png|jpe?g|webp|bmp|gif|tiff?))+$/i, "");
  const name = base.toLowerCase().replaceAll(/[^a-z0-9._-]+/g, "-").replaceAll(/^[^a-z0-9]+|[^a-z0-9]+$/g, "");
  return name.slice(0, 63) || "pictures";
}

/** Returns the files as one: packed into a ZIP with their paths, unless the service reads them as they are. `signal` cancels it. */
export async function packed(files: readonly NamedFile[], name: string, signal: AbortSignal, onFile: (count: number) => void): Promise<File> {
  const [first] = files;
  if (first !== undefined && isData(files)) return first.file;
  const { downloadZip } = await import("client-zip");
  const blob = await zipped(downloadZip(counted(files, signal, onFile)), signal);
  return new File([blob], `${name}.zip`, { type: "application/zip" });
}

async function zipped(response: Response, signal: AbortSignal): Promise<Blob> {
  try {
    return await response.blob();
  } finally {
    signal.throwIfAborted(); // the error of a body that was cancelled is another one
  }
}

function* counted(files: readonly NamedFile[], signal: AbortSignal, onFile: (count: number) => void) {
  for (const [index, { path, file }] of files.entries()) {
    signal.throwIfAborted();
    onFile(index);
    yield { name: path, input: file, lastModified: new Date(file.lastModified) };
  }
}

function visible(files: NamedFile[]): NamedFile[] {
  return files.filter(({ path }) => !HIDDEN.test(path)).sort((a, b) => a.path.localeCompare(b.path));
}

async function filesOf(entry: FileSystemEntry): Promise<NamedFile[]> {
  const path = entry.fullPath.replace(/^\//, "");
  if (entry.isFile) {
    const file = await new Promise<File>((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
    return [{ path, file }];
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  const files: NamedFile[] = [];
  for (;;) {
    // a reader returns some hundred entries at a time, and none at the end
    const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (entries.length === 0) return files;
    files.push(...(await Promise.all(entries.map(filesOf))).flat());
  }
}
