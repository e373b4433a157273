/** Events of a training as lines of its log. */
import type { StreamEvent } from "../../api/events";
import { duration, number } from "../../lib/format";

/** Returns the line of an event; null for events that are shown elsewhere. */
export function logLine({ name, data }: StreamEvent): string | null {
  switch (name) {
    case "status":
      return String(data.status);
    case "message":
      return String(data.message);
    case "checkpoint":
      return `checkpoint: epoch ${number(Number(data.epoch))}, step ${number(Number(data.step_number))}, after ${duration(Number(data.seconds))}`;
    default:
      return null;
  }
}
