/** Where things lie on the plane, in CSS pixels. */

export interface Point {
  x: number;
  y: number;
}

/** The service's limits of a manifold. */
const MOST_CELLS = 64;
const FEWEST_CELLS = 8;
const DISTANCE = 20;
/** Height of the line with the numbers below the picture. */
const CAPTION = 24;

/** Returns how many pictures of a width fit side by side: pictures in their own size, on the whole area. */
export function cellsFor(side: number, width: number): number {
  if (side <= 0) return 0;
  return Math.min(Math.max(Math.floor(side / width), FEWEST_CELLS), MOST_CELLS);
}

/** Returns where a picture lies beside the hand: above it and to its right, unless it would leave the plane. */
export function beside(hand: Point, picture: number, side: number): Point {
  const right = hand.x + DISTANCE + picture <= side;
  const above = hand.y - DISTANCE - picture - CAPTION >= 0;
  return {
    x: clamp(right ? hand.x + DISTANCE : hand.x - DISTANCE - picture, side - picture),
    y: clamp(above ? hand.y - DISTANCE - picture - CAPTION : hand.y + DISTANCE, side - picture - CAPTION),
  };
}

function clamp(value: number, most: number): number {
  return Math.round(Math.max(0, Math.min(value, most)));
}
