/** What the hand does on the grid: brush, eraser or mask, how wide, and undo. */
import { Segmented } from "../../components/form/Segmented";
import { LoadButton } from "../../components/paint/LoadButton";
import type { Painting } from "../../components/paint/painting";
import { inverted } from "../../components/paint/pixels";

export const TOOLS = ["brush", "eraser", "mask", "unmask"] as const;
export type Tool = (typeof TOOLS)[number];

interface Props {
  painting: Painting;
  tools: readonly Tool[];
  tool: Tool;
  onTool: (tool: Tool) => void;
  radius: number;
  onRadius: (radius: number) => void;
  onFile: (file: File) => void;
}

export function Tools({ painting, tools, tool, onTool, radius, onRadius, onFile }: Props) {
  return (
    <div class="paint-tools">
      <Segmented label="Tool" choices={tools} value={tool} onChange={(chosen) => onTool(chosen as Tool)} />
      <label class="paint-width">
        <span class="field-name">width</span>
        <input type="range" min={0.5} max={4} step={0.1} value={radius} onInput={(event) => onRadius(Number(event.currentTarget.value))} />
      </label>
      <div class="buttons">
        <button type="button" title="Undo (Z)" disabled={painting.undoable.value === 0} onClick={() => painting.undo()}>
          Undo
        </button>
        <button type="button" onClick={() => painting.clear()}>
          Clear
        </button>
        <button type="button" title="Models of MNIST expect white on black" onClick={() => painting.replace("pixels", inverted(painting.pixels.peek()))}>
          Invert
        </button>
        <LoadButton label="Load…" onFile={onFile} />
      </div>
    </div>
  );
}
