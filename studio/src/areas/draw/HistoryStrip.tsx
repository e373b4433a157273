/** What was drawn before, also before a reload: one picture for each request. */
import { useSignalEffect } from "@preact/signals";
import { useState } from "preact/hooks";
import { Confirm } from "../../components/Dialog";
import { pngUrl } from "../../lib/files";
import { go } from "../../router";
import { historyVersion } from "../../state/history";
import { clearHistory, type Drawing, history, reopen } from "./drawings";
import { paramsOf } from "./request";

const SIDE = 48;

export function HistoryStrip() {
  const [entries, setEntries] = useState<Drawing[]>([]);
  const [asking, setAsking] = useState(false);
  useSignalEffect(() => {
    if (historyVersion.value < 0) return; // read, so that a change of it reads the history again
    history().then(setEntries, () => setEntries([])); // a browser without storage has no history
  });
  return (
    <section class="history" aria-label="History">
      <span class="muted history-name">History</span>
      <ol class="history-list" tabIndex={0} aria-label="Requests, newest first">
        {entries.map((drawing) => (
          <li key={`${drawing.at}`}>
            <HistoryEntry drawing={drawing} />
          </li>
        ))}
      </ol>
      {entries.length > 0 && (
        <button type="button" class="quiet" onClick={() => setAsking(true)}>
          Clear
        </button>
      )}
      {asking && (
        <Confirm title="Clear the history?" action="Clear" danger onConfirm={() => void clearHistory()} onClose={() => setAsking(false)}>
          {entries.length} requests and their pictures are removed from this browser. The same request and seed make the same pictures again.
        </Confirm>
      )}
    </section>
  );
}

function HistoryEntry({ drawing }: { drawing: Drawing }) {
  const { request, image, images } = drawing;
  const scale = Math.max(1, Math.floor(SIDE / Math.max(image.width, image.height)));
  const open = () => {
    reopen(drawing);
    go("draw", paramsOf(request));
  };
  return (
    <button type="button" class="history-entry" title={`${request.model}, seed ${request.seed}, ${request.count} pictures`} onClick={open}>
      <img
        class="pixelated"
        src={pngUrl(images[0] ?? "")}
        width={Math.min(SIDE, image.width * scale)}
        height={image.height === 1 ? SIDE / 2 : image.height * scale}
        alt={`${request.model}, seed ${request.seed}`}
      />
    </button>
  );
}
