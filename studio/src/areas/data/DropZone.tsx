/** Takes files: dropped, or chosen as files or as a folder. */
import { useMemo, useRef, useState } from "preact/hooks";
import { chosenFiles, droppedFiles, isData } from "../../lib/dropped";
import { bytes, number } from "../../lib/format";
import { Newest } from "../../lib/newest";
import { choose, files } from "./additions";

const ACCEPTED = ".zip,.npz,.gz,.idx,.png,.jpg,.jpeg,.webp,.bmp,.gif,.tif,.tiff";

export function DropZone({ disabled }: { disabled: boolean }) {
  const [over, setOver] = useState(false);
  const file = useRef<HTMLInputElement>(null);
  const folder = useRef<HTMLInputElement>(null);
  const chosen = files.value;
  const choices = useMemo(() => new Newest(), []);
  const onDrop = async (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    if (disabled || !event.dataTransfer) return;
    const isNewest = choices.start();
    const dropped = await droppedFiles(event.dataTransfer.items);
    if (isNewest()) choose(dropped);
  };
  const onDragOver = (event: DragEvent) => {
    event.preventDefault();
    setOver(!disabled);
  };
  const onChange = (input: HTMLInputElement) => {
    if (input.files && input.files.length > 0) {
      choices.start();
      choose(chosenFiles(input.files));
    }
    input.value = ""; // so that the same file can be chosen again
  };
  return (
    <div class={`add-drop ${over ? "add-drop-over" : ""}`} onDrop={(event) => void onDrop(event)} onDragOver={onDragOver} onDragLeave={() => setOver(false)}>
      <p>{chosen.length === 0 ? "Drop a folder of pictures, a ZIP, an NPZ or an IDX file here" : summary()}</p>
      <div class="buttons">
        <button type="button" disabled={disabled} onClick={() => file.current?.click()}>
          Choose files
        </button>
        <button type="button" disabled={disabled} onClick={() => folder.current?.click()}>
          Choose a folder
        </button>
      </div>
      <input ref={file} type="file" class="hidden" tabIndex={-1} aria-label="Files of a dataset" multiple accept={ACCEPTED} onChange={(event) => onChange(event.currentTarget)} />
      <input ref={folder} type="file" class="hidden" tabIndex={-1} aria-label="Folder of a dataset" {...{ webkitdirectory: true }} onChange={(event) => onChange(event.currentTarget)} />
    </div>
  );
}

function summary(): string {
  const chosen = files.value;
  const size = bytes(chosen.reduce((sum, { file }) => sum + file.size, 0));
  const [first] = chosen;
  if (chosen.length === 1 && first) return `${first.path}, ${size}`;
  return `${number(chosen.length)} files, ${size}${isData(chosen) ? "" : "; they are packed into a ZIP"}`;
}
