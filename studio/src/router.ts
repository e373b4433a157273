/** The address is the state: `/draw?model=vae-mnist&seed=3`. A signal holds it; changes go to the browser's history. */
import { signal } from "@preact/signals";
import { AREAS, type AreaId } from "./areas";

export interface Address {
  area: AreaId;
  params: ReadonlyMap<string, string>;
}

/** New values of parameters; null removes one. */
export type Changes = Record<string, string | number | null>;

/** The address that is shown. */
export const address = signal<Address>(parse(new URL(location.href)));

/** Returns the area and the parameters of an address; an unknown path means the first area. */
export function parse(url: URL): Address {
  const name = url.pathname.slice(1);
  const area = AREAS.find(({ id }) => id === name)?.id ?? "draw";
  return { area, params: new Map(url.searchParams) };
}

/** Returns the path and query of an address. */
export function format({ area, params }: Address): string {
  const query = new URLSearchParams([...params]).toString();
  return `/${area}${query && `?${query}`}`;
}

/** Shows an area, with these parameters only. */
export function go(area: AreaId, changes: Changes = {}): void {
  show({ area, params: changed(new Map(), changes) }, false);
}

/** Changes parameters of the present address. `replace`: the back button skips the present ones. */
export function setParams(changes: Changes, { replace = false } = {}): void {
  const { area, params } = address.value;
  show({ area, params: changed(params, changes) }, replace);
}

function changed(params: ReadonlyMap<string, string>, changes: Changes): Map<string, string> {
  const result = new Map(params);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null) result.delete(name);
    else result.set(name, String(value));
  }
  return result;
}

function show(next: Address, replace: boolean): void {
  const path = format(next);
  if (path === format(address.value)) return;
  if (replace) history.replaceState(null, "", path);
  else history.pushState(null, "", path);
  address.value = next;
}

/** Follows the back button, and links to areas that are clicked. */
export function startRouter(): void {
  addEventListener("popstate", () => (address.value = parse(new URL(location.href))));
  document.addEventListener("click", (event) => {
    const link = event.target instanceof Element ? event.target.closest("a") : null;
    if (link === null || event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey) return;
    const url = new URL(link.href);
    if (url.origin !== location.origin || !AREAS.some(({ id }) => url.pathname === `/${id}`)) return;
    event.preventDefault();
    show(parse(url), false);
  });
}
