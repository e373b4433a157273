/** The log of a training: what its worker reported, newest at the bottom. */
import { useLayoutEffect, useRef } from "preact/hooks";

const NEAR_PX = 40;

export function RunLog({ lines }: { lines: readonly string[] }) {
  const element = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  useLayoutEffect(() => {
    const { current } = element;
    if (current !== null && follows.current) current.scrollTop = current.scrollHeight;
  }, [lines]);
  const onScroll = () => {
    const { current } = element;
    if (current !== null) follows.current = current.scrollHeight - current.scrollTop - current.clientHeight < NEAR_PX;
  };
  return (
    <section class="stack" aria-label="Log">
      <h3>Log</h3>
      <div class="code run-log" ref={element} tabIndex={0} role="log" aria-label="Messages of the training" onScroll={onScroll}>
        {lines.map((line, index) => (
          <p key={index}>{line}</p>
        ))}
      </div>
    </section>
  );
}
