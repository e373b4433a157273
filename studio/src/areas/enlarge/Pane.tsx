/** A view of the photograph and one enlargement of it, under one divider; or of one picture alone. */
import { useEffect, useRef } from "preact/hooks";
import { type Box, useBox } from "../../state/box";
import { Divider } from "./Divider";
import { useGestures } from "./gestures";
import { attach, type Painter, type Picture } from "./pictures";
import { fit, type Viewport } from "./viewport";

interface Props {
  label: string;
  before: Picture;
  after: Picture | null;
  /** The divider's place, 0 to 1: to the left of it is the picture before. */
  divider: number;
  onDivider: ((share: number) => void) | null;
  /** Null shows all of it. */
  viewport: Viewport | null;
  onViewport: (viewport: Viewport) => void;
}

export function Pane({ label, before, after, divider, onDivider, viewport, onViewport }: Props) {
  const element = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const painter = useRef<Painter | null>(null);
  const view = useBox(element);
  const original: Box = { width: before.width, height: before.height };
  const shown = viewport ?? fit(original, view);
  const gestures = useGestures({ element, picture: original, view, viewport: shown, onChange: onViewport });
  useEffect(() => {
    if (canvas.current === null) return;
    painter.current = attach(canvas.current);
    return () => painter.current?.detach();
  }, []);
  useEffect(() => {
    if (view.width === 0) return;
    painter.current?.draw({ before: before.id, after: after?.id ?? null, divider, original, viewport: shown, view, ratio: devicePixelRatio });
  }, [before, after, divider, view, shown.scale, shown.x, shown.y]);
  return (
    <div class="pane" ref={element} role="group" tabIndex={0} aria-label={`${label}. Plus and minus zoom, 0 shows all, arrow keys move.`} {...gestures}>
      <canvas ref={canvas} role="img" aria-label={label} />
      {onDivider && after && <Divider share={divider} view={view} onChange={onDivider} />}
    </div>
  );
}
