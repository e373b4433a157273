/** Plays frames forwards and backwards; Space stops and goes on. */
import { useEffect, useRef, useState } from "preact/hooks";
import type { ImageSize } from "../../api/types";
import { pngUrl } from "../../lib/files";
import { useBox } from "../../state/box";
import { useShortcuts } from "../../state/shortcuts";
import { frameAt } from "./frames";

const FRAMES_A_SECOND = 16;
const MAX_SCALE = 16;

export function FilmPlayer({ frames, image }: { frames: readonly string[]; image: ImageSize }) {
  const area = useRef<HTMLDivElement>(null);
  const box = useBox(area);
  const [playing, setPlaying] = useState(() => !matchMedia("(prefers-reduced-motion: reduce)").matches);
  const [tick, setTick] = useState(0);
  useEffect(() => {
    if (!playing || frames.length < 2) return;
    const timer = setInterval(() => setTick((old) => old + 1), 1000 / FRAMES_A_SECOND);
    return () => clearInterval(timer);
  }, [playing, frames.length]);
  const toggle = () => setPlaying(!playing);
  useShortcuts([{ key: " ", label: "Play or stop", run: toggle }]);
  const index = frameAt(tick, frames.length);
  const scale = Math.min(MAX_SCALE, Math.max(1, Math.floor(Math.min(box.width / image.width, box.height / image.height))));
  return (
    <>
      <div class="sliders-area" ref={area}>
        {frames.length > 0 && box.width > 0 && (
          <img class="pixelated" src={pngUrl(frames[index] ?? "")} width={image.width * scale} height={image.height * scale} alt={`Frame ${index + 1} of ${frames.length}`} />
        )}
      </div>
      <div class="film-controls">
        <button type="button" class="film-play" onClick={toggle}>
          {playing ? "Stop" : "Play"}
        </button>
        <input
          type="range"
          aria-label="Frame"
          aria-valuetext={`Frame ${index + 1} of ${frames.length}`}
          min={0}
          max={Math.max(0, frames.length - 1)}
          step={1}
          value={index}
          onInput={(event) => {
            setPlaying(false);
            setTick(Number(event.currentTarget.value));
          }}
        />
        <span class="muted film-count">
          {frames.length === 0 ? "" : `${index + 1} of ${frames.length}`}
        </span>
      </div>
    </>
  );
}
