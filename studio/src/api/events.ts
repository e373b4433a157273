/** Event streams over `fetch`, which can send the API key; `EventSource` cannot. */
import { EventSourceParserStream } from "eventsource-parser/stream";
import { ProblemError } from "./problem";
import { RECONNECT_S, reconnectDelay, request, sleep } from "./send";

export interface StreamEvent {
  id: string | undefined;
  name: string;
  data: Record<string, unknown>;
}

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

/**
 * Yields the events of a job or training until it has ended.
 *
 * A connection that breaks is opened again after the last event that came (`Last-Event-ID`), as often as needed; so
 * is one that is rejected because the service is unavailable. Throws ProblemError for other error responses, and
 * AbortError when `signal` cancels the stream.
 */
export async function* events(path: string, signal: AbortSignal, lastEventId = ""): AsyncGenerator<StreamEvent> {
  let last = lastEventId;
  for (;;) {
    let delay = RECONNECT_S;
    try {
      const headers: Record<string, string> = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
      const response = await request(path, { headers, signal });
      if (response.status === 204 || response.body === null) return;
      for await (const event of messages(response.body)) {
        last = event.id ?? last;
        yield event;
        if (event.name === "status" && ENDED.has(String(event.data.status))) return;
      }
    } catch (error) {
      const needed = reconnectDelay(error);
      if (signal.aborted || (error instanceof ProblemError && needed === null)) throw error;
      delay = needed ?? RECONNECT_S;
    }
    await sleep(delay, signal);
  }
}

async function* messages(body: ReadableStream<Uint8Array>): AsyncGenerator<StreamEvent> {
  const text = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>);
  const reader = text.pipeThrough(new EventSourceParserStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield { id: value.id, name: value.event ?? "message", data: JSON.parse(value.data) as Record<string, unknown> };
    }
  } finally {
    reader.cancel().catch(() => undefined); // a stream that has failed fails again
  }
}
