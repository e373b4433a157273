/** Curves over a common axis. uPlot draws them; it is loaded with the first chart. */
import { useEffect, useMemo, useRef } from "preact/hooks";
import type uPlot from "uplot";
import { countPoints, type CurvePoints, joined } from "../lib/curves";
import { number } from "../lib/format";
import { appearance } from "../state/theme";
import "./chart.css";

export interface Curve extends CurvePoints {
  label: string;
  /** A CSS colour, such as `var(--accent)`. */
  color: string;
  width?: number;
}

interface Props {
  /** What the chart shows, for screen readers. */
  label: string;
  xLabel: string;
  yLabel: string;
  curves: readonly Curve[];
  logarithmic?: boolean;
  height?: number;
  /** Charts with the same name share their cursor. */
  cursor?: string;
  /** Places of the x axis that are marked; `mark` is the one that is looked at. */
  marks?: readonly number[];
  mark?: number | null;
}

// eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- a constant enum of a declaration has no value
const LOGARITHMIC = 3 as uPlot.Scale.Distr.Logarithmic;
const MARK_HEIGHT = 6;

export function Chart(props: Props) {
  const { label, xLabel, yLabel, curves, logarithmic = false, height = 280, cursor, marks = [], mark = null } = props;
  const element = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const rows = useMemo(() => joined(curves), [curves]);
  const latest = useRef<Shown>({ rows, marks, mark, zoomed: false });
  latest.current = { ...latest.current, rows, marks, mark };
  const shown = curves.map((curve) => `${curve.label} ${curve.color} ${curve.width ?? 1}`).join();
  useEffect(() => {
    const { current } = element;
    if (current === null) return;
    let gone = false;
    void Promise.all([import("uplot"), import("uplot/dist/uPlot.min.css")]).then(([{ default: Plot }]) => {
      if (gone) return;
      latest.current.zoomed = false;
      plot.current = new Plot(optionsOf(props, current, latest), latest.current.rows as uPlot.AlignedData, current);
    });
    const observer = new ResizeObserver(() => plot.current?.setSize({ width: current.clientWidth, height }));
    observer.observe(current);
    return () => {
      gone = true;
      observer.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
    // the canvas has the colours of the time when it was drawn
  }, [appearance.value, shown, xLabel, yLabel, logarithmic, height, cursor]);
  useEffect(() => {
    const { current } = plot;
    if (current === null) return;
    const { zoomed } = latest.current;
    current.setData(rows as uPlot.AlignedData, !zoomed); // a part of the axis that was selected stays selected
    if (zoomed) current.redraw();
  }, [rows]);
  useEffect(() => plot.current?.redraw(false), [marks.join(), mark]);
  return <div class="chart" ref={element} role="img" aria-label={label} data-points={countPoints(rows)} style={{ minHeight: `${height}px` }} />;
}

/** Returns a colour as a canvas takes it: variables and `light-dark()` are resolved. */
function resolved(color: string, within: Element): string {
  const probe = within.appendChild(document.createElement("span"));
  probe.style.color = color;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

interface Shown {
  rows: ReturnType<typeof joined>;
  marks: readonly number[];
  mark: number | null;
  /** Whether a part of the x axis was selected. */
  zoomed: boolean;
}

function optionsOf({ xLabel, yLabel, curves, logarithmic, height = 280, cursor }: Props, within: HTMLElement, shown: { current: Shown }): uPlot.Options {
  const color = (name: string) => resolved(name, within);
  const line = color("var(--line)");
  const text = color("var(--muted)");
  const accent = color("var(--accent)");
  const font = `12px ${getComputedStyle(within).fontFamily}`;
  const axis = { stroke: text, font, labelFont: font, labelSize: 20, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 } };
  return {
    width: within.clientWidth,
    height,
    scales: { x: { time: false }, y: logarithmic ? { distr: LOGARITHMIC } : {} },
    axes: [
      { ...axis, label: xLabel, size: 32, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000] },
      { ...axis, label: yLabel, size: 56 },
    ],
    series: [
      { label: xLabel, value: (_plot, value) => legendValue(value) },
      ...curves.map((curve) => ({ label: curve.label, stroke: color(curve.color), width: curve.width ?? 1, spanGaps: true, points: { show: curve.x.length === 1 }, value: (_plot: uPlot, value: number | null) => legendValue(value) })),
    ],
    cursor: cursor === undefined ? {} : { sync: { key: cursor } },
    hooks: {
      ready: [(plot) => plot.over.addEventListener("dblclick", () => (shown.current.zoomed = false))],
      setSelect: [(plot) => (shown.current.zoomed ||= plot.select.width > 0)],
      draw: [(plot) => drawMarks(plot, shown.current, text, accent)],
    },
  };
}

/** Returns a value under the cursor for the legend; nothing without one. */
function legendValue(value: number | null): string {
  return value === null ? "" : number(value);
}

function drawMarks(plot: uPlot, { marks, mark }: Shown, color: string, accent: string): void {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  for (const place of marks) {
    const x = plot.valToPos(place, "x", true);
    if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
    const length = place === mark ? bbox.height : MARK_HEIGHT * ratio;
    ctx.fillStyle = place === mark ? accent : color;
    ctx.fillRect(Math.round(x - ratio / 2), bbox.top + bbox.height - length, Math.max(1, ratio), length);
  }
}
