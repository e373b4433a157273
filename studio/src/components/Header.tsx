/** Model and version of the area, whether the service is ready, and the theme. */
import { AREAS } from "../areas";
import { address, setParams } from "../router";
import { currentModel, modelsFor, reachable, readiness, waiting } from "../state/service";
import { nextTheme, theme } from "../state/theme";
import { Icon } from "./Icon";

export function Header() {
  const area = AREAS.find(({ id }) => id === address.value.area);
  return (
    <header class="header">
      {area?.operation === undefined ? <h1 class="header-title">{area?.label}</h1> : <ModelChoice />}
      <div class="header-end">
        <State />
        <button type="button" class="icon-button" onClick={nextTheme} title={`Theme: ${theme.value}`} aria-label={`Theme: ${theme.value}`}>
          <Icon name={theme.value} />
        </button>
      </div>
    </header>
  );
}

function ModelChoice() {
  const area = AREAS.find(({ id }) => id === address.value.area);
  const able = area?.operation === undefined ? [] : modelsFor(area.operation);
  const model = currentModel.value;
  const version = address.value.params.get("version");
  return (
    <div class="header-model">
      <h1 class="hidden">{area?.label}</h1>
      <label class="header-field">
        <span class="muted header-name">model</span>
        <select aria-label="model" value={model?.name ?? ""} disabled={able.length === 0} onChange={(event) => chooseModel(event.currentTarget.value)}>
          {able.map(({ name }) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      </label>
      <label class="header-field">
        <span class="muted header-name">version</span>
        <select aria-label="version" value={version ?? ""} disabled={model === null} onChange={(event) => setParams({ version: event.currentTarget.value || null })}>
          <option value="">{model === null ? "" : `${model.version} (active)`}</option>
          {model?.versions
            .filter((other) => other !== model.version)
            .map((other) => (
              <option key={other} value={other}>
                {other}
              </option>
            ))}
        </select>
      </label>
    </div>
  );
}

/** Takes another model: parameters of the area that belong to the old one's options go. */
function chooseModel(name: string): void {
  const kept = new Set(["seed", "count", "tab"]);
  const removed = [...address.value.params.keys()].filter((param) => !kept.has(param));
  setParams({ ...Object.fromEntries(removed.map((param) => [param, null])), model: name });
}

function State() {
  const ready = readiness.value?.status === "ready";
  const words = !reachable.value ? "not reachable" : readiness.value === null ? "…" : ready ? "ready" : "not ready";
  return (
    <p class="header-state" role="status">
      <span class={`dot ${ready ? "dot-ok" : "dot-bad"}`} aria-hidden="true" />
      {words}
      <span class="muted header-waiting"> · {waiting.value} waiting</span>
    </p>
  );
}
