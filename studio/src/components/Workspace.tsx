/** The layout of an area with a result: the result, its options beside it, and a strip below. */
import type { ComponentChildren } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Icon } from "./Icon";

interface Props {
  result: ComponentChildren;
  options: ComponentChildren;
  strip?: ComponentChildren;
  /** Whether an option has an error; on a phone it may be hidden in the sheet. */
  attention?: boolean;
  /** What is shown in detail among the options; on a phone the sheet opens for it. */
  detail?: object | null;
}

/** On a phone the options are a sheet that leaves the result visible. */
export function Workspace({ result, options, strip, attention = false, detail = null }: Props) {
  const [open, setOpen] = useState(false);
  useEffect(() => {
    if (detail !== null) setOpen(true);
  }, [detail]);
  return (
    <div class={`workspace ${open ? "workspace-open" : ""}`}>
      <section class="workspace-result" aria-label="Result">
        {result}
      </section>
      <button
        type="button"
        class={`workspace-toggle ${attention ? "workspace-attention" : ""}`}
        aria-expanded={open}
        aria-controls="options"
        onClick={() => setOpen(!open)}
      >
        <Icon name={open ? "close" : "sliders"} />
        {open ? "Close" : attention ? "Correct the options" : "Options"}
      </button>
      <aside class="workspace-options" id="options" aria-label="Options">
        {options}
      </aside>
      {strip && <div class="workspace-strip">{strip}</div>}
    </div>
  );
}
