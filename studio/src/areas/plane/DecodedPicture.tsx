/** The picture of the newest code, enlarged by a whole factor; a vector is a strip. */
import { useEffect, useRef } from "preact/hooks";
import type { ImageSize } from "../../api/types";
import type { Decoder } from "./decoder";

interface Props {
  decoder: Decoder;
  image: ImageSize;
  scale: number;
  label: string;
}

const STRIP_HEIGHT = 64;

export function DecodedPicture({ decoder, image, scale, label }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => (canvas.current === null ? undefined : decoder.attach(canvas.current)), [decoder]);
  const height = image.height === 1 ? STRIP_HEIGHT : image.height * scale;
  return (
    <canvas
      ref={canvas}
      class="decoded pixelated"
      width={image.width}
      height={image.height}
      style={{ width: `${image.width * scale}px`, height: `${height}px` }}
      role="img"
      aria-label={label}
    />
  );
}
