/** The nine areas: at the left, on a phone at the bottom. */
import { AREAS } from "../areas";
import { address } from "../router";
import { unfinished } from "../state/service";
import { Icon } from "./Icon";

export function Rail() {
  return (
    <nav class="rail" aria-label="Areas">
      {AREAS.map(({ id, label }, index) => (
        <a key={id} href={`/${id}`} class="rail-link" title={`${label} (${index + 1})`} aria-current={address.value.area === id ? "page" : undefined}>
          <Icon name={id} />
          <span class="rail-label">{label}</span>
          {id === "jobs" && unfinished.value.length > 0 && (
            <span class="rail-count">
              {unfinished.value.length}
              <span class="hidden"> unfinished</span>
            </span>
          )}
        </a>
      ))}
    </nav>
  );
}
