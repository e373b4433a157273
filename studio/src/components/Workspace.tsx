/** The layout of an area with a result: the result, its options beside it, and a strip below. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { Icon } from "./Icon";

interface Props {
  result: ComponentChildren;
  options: ComponentChildren;
  strip?: ComponentChildren;
}

/** On a phone the options are a sheet that leaves the result visible. */
export function Workspace({ result, options, strip }: Props) {
  const [open, setOpen] = useState(false);
  return (
    <div class={`workspace ${open ? "workspace-open" : ""}`}>
      <section class="workspace-result" aria-label="Result">
        {result}
      </section>
      <button type="button" class="workspace-toggle" aria-expanded={open} aria-controls="options" onClick={() => setOpen(!open)}>
        <Icon name={open ? "close" : "sliders"} />
        {open ? "Close" : "Options"}
      </button>
      <aside class="workspace-options" id="options" aria-label="Options">
        {options}
      </aside>
      {strip && <div class="workspace-strip">{strip}</div>}
    </div>
  );
}
