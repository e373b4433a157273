/** Returns the frame of a film that runs forwards and backwards, without showing its ends twice. */
export function frameAt(tick: number, count: number): number {
  if (count < 2) return 0;
  const period = 2 * (count - 1);
  const place = tick % period;
  return place < count ? place : period - place;
}
