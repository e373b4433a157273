/** The frame of the page: rail, header, and the area of the address. */
import type { ComponentType } from "preact";
import { useEffect, useState } from "preact/hooks";
import { keyNeeded } from "./api/key";
import { AREAS, type Area } from "./areas";
import { Empty } from "./components/Empty";
import { Header } from "./components/Header";
import { KeyPrompt } from "./components/KeyPrompt";
import { Rail } from "./components/Rail";
import { ShortcutList } from "./components/ShortcutList";
import { address, go } from "./router";
import { useShortcuts } from "./state/shortcuts";

const AREA_SHORTCUTS = AREAS.map(({ id, label }, index) => ({ key: String(index + 1), label, run: () => go(id) }));

export function App() {
  useShortcuts(AREA_SHORTCUTS);
  const area = AREAS.find(({ id }) => id === address.value.area);
  useEffect(() => {
    document.title = `${area?.label ?? ""} · Reverie Studio`;
  }, [area]);
  return (
    <div class="frame">
      <Rail />
      <Header />
      <main class="frame-main" id="main">
        {keyNeeded.value !== null && <KeyPrompt detail={keyNeeded.value} />}
        <div class="frame-area" hidden={keyNeeded.value !== null}>
          {area && <LoadedArea key={area.id} area={area} />}
        </div>
      </main>
      <ShortcutList />
    </div>
  );
}

function LoadedArea({ area }: { area: Area }) {
  const [shown, setShown] = useState<{ component: ComponentType | null; failed: boolean }>({ component: null, failed: false });
  useEffect(() => {
    area.load().then(
      (module) => setShown({ component: module.default, failed: false }),
      () => setShown({ component: null, failed: true }),
    );
  }, [area]);
  if (shown.failed) {
    return <Empty title="This part of the page could not be loaded">The page may have been rebuilt: reload it.</Empty>;
  }
  const Shown = shown.component;
  return Shown && <Shown />;
}
