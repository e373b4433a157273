/** An encoding as a strip: one cell for each number, one line for each layer. */
import { useEffect, useRef } from "preact/hooks";
import type { Results } from "../../api/types";
import { describeEncoding, rowsOf } from "./encoding";

const WIDTH = 240;
const HEIGHT = 24;

export function EncodingStrip({ encoding }: { encoding: Results["encodings"] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context) return;
    const rows = rowsOf(encoding);
    const height = HEIGHT / rows.length;
    rows.forEach((row, line) =>
      row.forEach((value, index) => {
        const grey = Math.round(255 * value);
        context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
        context.fillRect((index * WIDTH) / row.length, line * height, WIDTH / row.length + 0.5, height);
      }),
    );
  }, [encoding]);
  return (
    <div class="encoding">
      <canvas ref={canvas} class="encoding-strip" width={WIDTH} height={HEIGHT} role="img" aria-label={`Encoding: ${describeEncoding(encoding)}`} />
      <span class="muted small">{describeEncoding(encoding)}</span>
    </div>
  );
}
