/** The versions of a model: which one serves, and the choice of another. */
import { useState } from "preact/hooks";
import { client, get } from "../../api/client";
import { problemOf } from "../../api/problem";
import type { Model, Problem } from "../../api/types";
import { Confirm } from "../../components/Dialog";
import { ProblemLine } from "../../components/ProblemLine";

interface Props {
  model: Model;
  onChange: () => void;
}

export function Versions({ model, onChange }: Props) {
  const [asked, setAsked] = useState<string | null>(null);
  const [activating, setActivating] = useState(false);
  const [previous, setPrevious] = useState<string | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const activate = async (version: string) => {
    setActivating(true);
    setProblem(null);
    try {
      await get(client.PATCH("/v1/models/{name}", { params: { path: { name: model.name } }, body: { version } }));
      setPrevious(model.version);
      onChange();
    } catch (error) {
      setProblem(problemOf(error));
    }
    setActivating(false);
  };
  return (
    <div class="stack">
      <div class="versions" role="group" aria-label={`Versions of ${model.name}`}>
        {model.versions.map((version) => (
          <button
            key={version}
            type="button"
            class={version === model.version ? "version version-active" : "version"}
            aria-pressed={version === model.version}
            disabled={activating || version === model.version}
            onClick={() => setAsked(version)}
          >
            {version === model.version ? `Version ${version} · active` : version}
          </button>
        ))}
        {previous !== null && previous !== model.version && (
          <button type="button" disabled={activating} onClick={() => void activate(previous)}>
            Roll back to {previous}
          </button>
        )}
      </div>
      {activating && <p class="muted" role="status">The workers load the version; the other one serves until they have it.</p>}
      <ProblemLine problem={problem} />
      {asked !== null && (
        <Confirm
          title={`Activate version ${asked} of ${model.name}?`}
          action={`Activate version ${asked}`}
          onConfirm={() => void activate(asked)}
          onClose={() => setAsked(null)}
        >
          Requests that name no version get it as soon as the workers have loaded it. Version {model.version} stays, and you can roll back to it.
        </Confirm>
      )}
    </div>
  );
}
