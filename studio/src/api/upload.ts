/** Uploads a form and reports how much of it has been sent, which `fetch` does not. */
import { askForKey, key, keyHeaders } from "./key";
import { ProblemError, readProblem } from "./problem";

export interface UploadOptions {
  signal: AbortSignal;
  /** Called with the bytes sent so far, and those of the whole form. */
  onProgress: (sent: number, total: number) => void;
}

/** Sends a form to a path of the service, and returns the JSON response. Throws ProblemError for an error response. */
export async function upload(path: string, form: FormData, options: UploadOptions): Promise<unknown> {
  for (;;) {
    const used = key.value;
    const response = await send(path, form, options);
    if (response.ok) return response.json();
    const problem = await readProblem(response);
    if (response.status !== 401) throw new ProblemError(problem);
    await askForKey(problem.detail, used, options.signal);
  }
}

function send(path: string, form: FormData, { signal, onProgress }: UploadOptions): Promise<Response> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted(); // an event `abort` that was before is not heard
    const sent = new XMLHttpRequest();
    const onAbort = () => sent.abort();
    sent.open("POST", path);
    for (const [name, value] of Object.entries(keyHeaders())) sent.setRequestHeader(name, value);
    sent.upload.onprogress = ({ loaded, total }) => onProgress(loaded, total);
    sent.onload = () => {
      const headers = { "Content-Type": sent.getResponseHeader("content-type") ?? "" };
      resolve(new Response(sent.responseText, { status: sent.status, statusText: sent.statusText, headers }));
    };
    sent.onerror = () => reject(new TypeError("network error during the upload"));
    sent.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    sent.onloadend = () => signal.removeEventListener("abort", onAbort);
    signal.addEventListener("abort", onAbort);
    sent.send(form);
  });
}
