/** The axis above strips: the numbers of the components of a vector. */
interface Props {
  /** Components of a vector. */
  length: number;
  /** Of a strip, in CSS pixels. */
  width: number;
}

export function StripAxis({ length, width }: Props) {
  const step = length > 100 ? 20 : 10;
  const ticks = Array.from({ length: Math.floor((length - 1) / step) + 1 }, (_, index) => index * step);
  return (
    <span class="strip-axis" style={{ width: `${width}px` }} aria-hidden="true">
      {ticks.map((tick) => (
        <span key={tick} style={{ left: `${((tick + 0.5) * width) / length}px` }}>
          {tick}
        </span>
      ))}
    </span>
  );
}
