/** Curves over a common axis. uPlot draws them; it is loaded with the first chart. */
import { useEffect, useRef } from "preact/hooks";
import type uPlot from "uplot";
import { theme } from "../state/theme";

export interface Curve {
  label: string;
  /** One value for each point of `x`; null where there is none. */
  values: readonly (number | null)[];
  /** A CSS colour, such as `var(--accent)`. */
  color: string;
  width?: number;
}

interface Props {
  label: string;
  x: readonly number[];
  xLabel: string;
  yLabel: string;
  curves: readonly Curve[];
  logarithmic?: boolean;
  height?: number;
  /** Charts with the same name share their cursor. */
  cursor?: string;
}

// eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- a constant enum of a declaration has no value
const LOGARITHMIC = 3 as uPlot.Scale.Distr.Logarithmic;

/** More points than this are thinned out before they are drawn. */
export const MAX_POINTS = 2000;

export function Chart(props: Props) {
  const { label, x, xLabel, yLabel, curves, logarithmic = false, height = 280, cursor } = props;
  const element = useRef<HTMLDivElement>(null);
  const shown = curves.map((curve) => `${curve.label} ${curve.color} ${curve.width ?? 1}`).join();
  const plot = useRef<uPlot | null>(null);
  const data = thinned(x, curves);
  useEffect(() => {
    const { current } = element;
    if (current === null) return;
    let gone = false;
    void Promise.all([import("uplot"), import("uplot/dist/uPlot.min.css")]).then(([{ default: Plot }]) => {
      if (gone) return;
      plot.current = new Plot(optionsOf(props, current), data, current);
    });
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: current.clientWidth, height }));
    observer.observe(current);
    return () => {
      gone = true;
      observer.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
    // the colours are those of the theme
  }, [theme.value, shown, xLabel, yLabel, logarithmic, height, cursor]);
  useEffect(() => plot.current?.setData(data), [x, curves]);
  return <div class="chart" ref={element} role="img" aria-label={label} style={{ minHeight: `${height}px` }} />;
}

/** Returns a colour as a canvas takes it: variables and `light-dark()` are resolved. */
function resolved(color: string, within: Element): string {
  const probe = within.appendChild(document.createElement("span"));
  probe.style.color = color;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function optionsOf({ xLabel, yLabel, curves, logarithmic, height = 280, cursor }: Props, within: HTMLElement): uPlot.Options {
  const color = (name: string) => resolved(name, within);
  const line = color("var(--line)");
  const text = color("var(--muted)");
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  return {
    width: within.clientWidth,
    height,
    scales: { x: { time: false }, y: logarithmic ? { distr: LOGARITHMIC } : {} },
    axes: [
      { ...axis, label: xLabel },
      { ...axis, label: yLabel, size: 64 },
    ],
    series: [{ label: xLabel }, ...curves.map((curve) => ({ label: curve.label, stroke: color(curve.color), width: curve.width ?? 1 }))],
    ...(cursor === undefined ? {} : { cursor: { sync: { key: cursor } } }),
  };
}

function thinned(x: readonly number[], curves: readonly Curve[]): uPlot.AlignedData {
  const step = Math.ceil(x.length / MAX_POINTS);
  const kept = (_: unknown, index: number) => index % step === 0 || index === x.length - 1;
  return [x.filter(kept), ...curves.map(({ values }) => values.filter(kept))] as unknown as uPlot.AlignedData;
}
