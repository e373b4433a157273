/** The photograph beside its enlargements: one view with a divider, or one view for each method. */
import { useSignalEffect } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import { Segmented } from "../../components/form/Segmented";
import { number } from "../../lib/format";
import { address, setParams } from "../../router";
import { useShortcuts } from "../../state/shortcuts";
import { enlargements, type Photograph, clear } from "./enlargements";
import { Pane } from "./Pane";
import { takeFile } from "./DropZone";
import { divider, holdsBefore, shownMethod, viewport } from "./view";

export const VIEWS = ["divider", "side by side"] as const;

export function Views({ photograph, methods }: { photograph: Photograph; methods: readonly string[] }) {
  const side = address.value.params.get("view") === "side";
  const done = methods.map((method) => enlargements.value.get(method)).filter((one) => one?.picture);
  const shown = done.find((one) => one?.method === shownMethod.value) ?? done.at(-1);
  useSignalEffect(() => {
    if (photograph.name !== "" && shownMethod.value !== null && !enlargements.value.has(shownMethod.value)) shownMethod.value = null;
  });
  useEffect(() => {
    viewport.value = null;
  }, [photograph]);
  useHeldSpace();
  const common = { before: photograph.picture, viewport: viewport.value, onViewport: (next: typeof viewport.value) => (viewport.value = next) };
  const { width, height } = photograph.picture;
  const hides = holdsBefore.value;
  return (
    <div
      class="views"
      onDragOver={(event) => event.preventDefault()}
      onDrop={(event) => {
        event.preventDefault();
        takeFile(event.dataTransfer);
      }}
    >
      <div class="views-bar">
        <Segmented label="View" choices={VIEWS} value={side ? VIEWS[1] : VIEWS[0]} onChange={(chosen) => setParams({ view: chosen === VIEWS[0] ? null : "side" })} />
        <p class="muted small views-name">
          {photograph.name} · {width} × {height}
        </p>
        <button type="button" disabled={viewport.value === null} onClick={() => (viewport.value = null)}>
          {viewport.value === null ? "Fits" : `${number(viewport.value.scale * 100, 3)} % — fit`}
        </button>
        <button type="button" onClick={clear}>
          Another…
        </button>
      </div>
      <div class={side ? "panes panes-side" : "panes"}>
        {side ? (
          <>
            <Labelled name="before">
              <Pane {...common} label="The photograph" after={null} divider={1} onDivider={null} />
            </Labelled>
            {done.map((one) => (
              <Labelled key={one?.method} name={one?.method ?? ""}>
                <Pane {...common} label={`Enlarged: ${one?.method ?? ""}`} after={one?.picture ?? null} divider={hides ? 1 : 0} onDivider={null} />
              </Labelled>
            ))}
          </>
        ) : (
          <Pane
            {...common}
            label={shown ? `Before and after: ${shown.method}` : "The photograph"}
            after={shown?.picture ?? null}
            divider={hides ? 1 : divider.value}
            onDivider={(share) => (divider.value = share)}
          />
        )}
      </div>
    </div>
  );
}

function Labelled({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <figure class="labelled">
      {children}
      <figcaption class="small">{name}</figcaption>
    </figure>
  );
}

/** Shows only the picture before, as long as Space is held. */
function useHeldSpace(): void {
  useShortcuts([{ key: " ", label: "Hold: before", run: () => (holdsBefore.value = true) }]);
  useEffect(() => {
    const release = () => (holdsBefore.value = false);
    addEventListener("keyup", release);
    return () => {
      removeEventListener("keyup", release);
      release();
    };
  }, []);
}
