/** How far something is; without a number, that it goes on. */
interface Props {
  /** 0 to 1; null if it is not known. */
  value: number | null;
  label: string;
}

export function Progress({ value, label }: Props) {
  return <progress class="progress" max={1} aria-label={label} {...(value === null ? {} : { value })} />;
}
