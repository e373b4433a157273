/** Where a photograph is dropped, pasted or chosen; or the bundled one is taken. */
import { useState } from "preact/hooks";
import { LoadButton } from "../../components/paint/LoadButton";
import example from "./example.jpg";
import { open, opening, problem } from "./enlargements";
import { localProblem } from "../../api/problem";

const ACCEPTED = "image/png,image/jpeg,image/webp";

export function DropZone() {
  const [over, setOver] = useState(false);
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    takeFile(event.dataTransfer);
  };
  return (
    <div
      class={`drop-zone ${over ? "drop-zone-over" : ""}`}
      onDragOver={(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave={() => setOver(false)}
      onDrop={drop}
    >
      <p class="empty-title">{opening.value ? "Reading the picture…" : "Drop or paste a photograph"}</p>
      <p class="muted">PNG, JPEG or WebP of any size. It is sent to this service only.</p>
      <div class="buttons">
        <LoadButton label="Choose a file…" class="primary" accept={ACCEPTED} onFile={(file) => void open(file, file.name)} />
        <button type="button" onClick={() => void openExample()}>
          Try the bundled picture
        </button>
      </div>
    </div>
  );
}

/** Opens the first file that was dropped or pasted. */
export function takeFile(data: DataTransfer | null): void {
  const file = data?.files[0];
  if (file) void open(file, file.name);
  else problem.value = localProblem("No file", "That was no file. Drop or paste a picture: PNG, JPEG or WebP.");
}

function openExample(): Promise<void> {
  return open(
    fetch(example).then((response) => response.blob()),
    "example.jpg",
  );
}
