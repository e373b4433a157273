/** Where the pictures of a gallery lie: groups below each other, each a heading and rows of equal cells. */

export interface Size {
  width: number;
  height: number;
}

/** A gallery's measures in CSS pixels. */
export interface Layout {
  columns: number;
  /** Of a picture, and of its cell with the gap. */
  picture: Size;
  cell: Size;
  groups: readonly GroupLayout[];
  height: number;
}

export interface GroupLayout {
  count: number;
  top: number;
  /** Where the rows of pictures start. */
  cellsTop: number;
  bottom: number;
}

/** A picture that is to be shown: number `index` of a group. */
export interface Cell {
  group: number;
  index: number;
  left: number;
  top: number;
}

export const GAP = 4;
export const HEADING = 32;
/** Strips have an axis below their heading. */
export const AXIS = 16;
/** How many picture elements a page may have. */
export const MAX_CELLS = 200;
const OVERSCAN_ROWS = 1;
const MAX_SCALE = 12;
const MIN_WIDTH = 40;
const STRIP_HEIGHT = 12;
const SHOWN_AT_ONCE = 64;

/** Returns the layout of groups of `counts` pictures in a view. Small pictures are enlarged by whole factors. */
export function layoutOf(counts: readonly number[], picture: Size, view: Size): Layout {
  const size = scaled(counts[0] ?? 1, picture, view);
  const cell = { width: size.width + GAP, height: size.height + GAP };
  const columns = columnsOf(cell.width, view);
  const groups: GroupLayout[] = [];
  let top = 0;
  for (const count of counts) {
    const cellsTop = top + HEADING + (picture.height === 1 ? AXIS : 0);
    const bottom = cellsTop + Math.ceil(count / columns) * cell.height + GAP;
    groups.push({ count, top, cellsTop, bottom });
    top = bottom;
  }
  return { columns, picture: size, cell, groups, height: top };
}

/** Returns the cells of the rows that lie between `from` and `to`, and one row more on each side. */
export function visibleCells(layout: Layout, from: number, to: number): Cell[] {
  const cells: Cell[] = [];
  layout.groups.forEach((group, number) => {
    if (group.bottom < from || group.top > to) return;
    const first = Math.max(0, Math.floor((from - group.cellsTop) / layout.cell.height) - OVERSCAN_ROWS);
    const end = Math.ceil((to - group.cellsTop) / layout.cell.height) + OVERSCAN_ROWS;
    for (let index = first * layout.columns; index < Math.min(group.count, end * layout.columns); index++) {
      cells.push({
        group: number,
        index,
        left: (index % layout.columns) * layout.cell.width,
        top: group.cellsTop + Math.floor(index / layout.columns) * layout.cell.height,
      });
    }
  });
  return cells.slice(0, MAX_CELLS);
}

function columnsOf(cellWidth: number, view: Size): number {
  return Math.max(1, Math.floor((view.width + GAP) / cellWidth));
}

/** Returns the largest size at which the first pictures are seen at once. */
function scaled(count: number, picture: Size, view: Size): Size {
  if (picture.height === 1) return { width: Math.max(1, Math.floor(view.width / picture.width)) * picture.width, height: STRIP_HEIGHT };
  const wanted = Math.min(count, SHOWN_AT_ONCE);
  let scale = 1;
  for (let next = 2; next <= MAX_SCALE; next++) {
    const shown = columnsOf(picture.width * next + GAP, view) * Math.floor((view.height - HEADING) / (picture.height * next + GAP));
    const needed = shown >= wanted || picture.width * next <= MIN_WIDTH;
    if (needed && picture.width * next <= view.width) scale = next;
  }
  while (cellsInView(picture, scale, view) > MAX_CELLS) scale++;
  return { width: picture.width * scale, height: picture.height * scale };
}

function cellsInView(picture: Size, scale: number, view: Size): number {
  const rows = Math.ceil(view.height / (picture.height * scale + GAP)) + 1 + 2 * OVERSCAN_ROWS;
  return columnsOf(picture.width * scale + GAP, view) * rows;
}
