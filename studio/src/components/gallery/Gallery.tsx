/** Pictures in groups, of which only the visible ones are in the page. */
import { useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { pngUrl } from "../../lib/files";
import { layoutOf, type Size, visibleCells } from "./layout";
import { StripAxis } from "./StripAxis";

export interface Group {
  key: number;
  title: string;
  detail: string;
  /** PNGs as base64. */
  images: readonly string[];
}

interface Props {
  label: string;
  groups: readonly Group[];
  /** The size of a picture in its own pixels. */
  picture: Size;
  selected: { group: number; index: number } | null;
  onSelect: (group: number, index: number) => void;
}

interface View extends Size {
  top: number;
}

export function Gallery({ label, groups, picture, selected, onSelect }: Props) {
  const element = useRef<HTMLDivElement>(null);
  const view = useView(element);
  const counts = groups.map(({ images }) => images.length);
  const layout = useMemo(
    () => layoutOf(counts, picture, view),
    [counts.join(), picture.width, picture.height, view.width, view.height],
  );
  const cells = view.width === 0 ? [] : visibleCells(layout, view.top, view.top + view.height);
  const strips = picture.height === 1;
  return (
    <div class="gallery" ref={element} role="group" aria-label={label} tabIndex={-1}>
      <div class="gallery-space" style={{ height: `${layout.height}px` }}>
        {layout.groups.map((place, number) => {
          const group = groups[number];
          if (group === undefined || place.bottom < view.top || place.top > view.top + view.height) return null;
          return (
            <h2 key={group.key} class="gallery-heading" style={{ transform: `translateY(${place.top}px)` }}>
              {group.title} <span class="muted">{group.detail}</span>
              {strips && <StripAxis length={picture.width} width={layout.picture.width} />}
            </h2>
          );
        })}
        {cells.map(({ group: number, index, left, top }) => {
          const group = groups[number];
          const isSelected = group !== undefined && selected?.group === group.key && selected.index === index;
          return (
            group && (
              <button
                key={`${group.key}-${index}`}
                type="button"
                class="gallery-cell"
                style={{ transform: `translate(${left}px, ${top}px)` }}
                tabIndex={isSelected || (selected === null && number === 0 && index === 0) ? 0 : -1}
                aria-pressed={isSelected}
                aria-label={`Picture ${index}, ${group.title}`}
                onClick={() => onSelect(group.key, index)}
              >
                <img class="pixelated" src={pngUrl(group.images[index] ?? "")} width={layout.picture.width} height={layout.picture.height} alt="" />
              </button>
            )
          );
        })}
      </div>
    </div>
  );
}

/** Returns the size of a scrolled element and how far it is scrolled. */
function useView(element: { current: HTMLElement | null }): View {
  const [view, setView] = useState<View>({ width: 0, height: 0, top: 0 });
  useLayoutEffect(() => {
    const { current } = element;
    if (current === null) return;
    const update = () => {
      const style = getComputedStyle(current);
      const padding = Number.parseFloat(style.paddingLeft) + Number.parseFloat(style.paddingRight);
      setView({ width: current.clientWidth - padding, height: current.clientHeight, top: current.scrollTop });
    };
    const observer = new ResizeObserver(update);
    observer.observe(current);
    current.addEventListener("scroll", update, { passive: true });
    update();
    return () => {
      observer.disconnect();
      current.removeEventListener("scroll", update);
    };
  }, []);
  return view;
}
