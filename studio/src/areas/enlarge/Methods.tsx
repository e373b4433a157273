/** The methods, each with its progress, its time and its file. */
import type { Model } from "../../api/types";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { save } from "../../lib/files";
import { bytes, duration } from "../../lib/format";
import { cancel, type Enlargement, enlargements, photograph } from "./enlargements";
import { methodField, ONLY } from "./request";

interface Props {
  model: Model;
  chosen: readonly string[];
  /** The method that is shown beside the photograph. */
  shown: string | null;
  scale: number;
  /** Names of the controls that show their own errors. */
  shownFields: readonly string[];
  onChoose: (methods: readonly string[]) => void;
  onShow: (method: string) => void;
}

export function Methods({ model, chosen, shown, scale, shownFields, onChoose, onShow }: Props) {
  const field = methodField(model);
  const toggle = (method: string) => {
    const next = chosen.includes(method) ? chosen.filter((other) => other !== method) : [...chosen, method];
    if (next.length > 0) onChoose(next);
  };
  return (
    <fieldset class="methods">
      <legend class="field-name">method</legend>
      {(field?.choices ?? [ONLY]).map((method) => (
        <div key={method} class="method">
          <label class="method-name" title={field?.description}>
            <input type="checkbox" checked={chosen.includes(method)} disabled={field === null} onChange={() => toggle(method)} />
            {method}
          </label>
          <MethodState enlargement={enlargements.value.get(method)} scale={scale} shownFields={shownFields} isShown={method === shown} onShow={() => onShow(method)} />
        </div>
      ))}
    </fieldset>
  );
}

interface StateProps {
  enlargement: Enlargement | undefined;
  scale: number;
  shownFields: readonly string[];
  isShown: boolean;
  onShow: () => void;
}

function MethodState({ enlargement, scale, shownFields, isShown, onShow }: StateProps) {
  if (enlargement === undefined) return null;
  const { method, state, progress, seconds, file, problem } = enlargement;
  if (state === "waiting") return <span class="muted small">waits</span>;
  if (state === "cancelled") return <span class="muted small">cancelled</span>;
  if (state === "failed") return <ProblemLine problem={problem} shownFields={shownFields} />;
  if (state === "running") {
    return (
      <div class="method-progress">
        <Progress value={progress} label={`Progress of ${method}`} />
        <span class="muted small">{progress === null ? "waits" : `${Math.round(progress * 100)} %`}</span>
        <button type="button" onClick={cancel}>
          Cancel
        </button>
      </div>
    );
  }
  const name = (photograph.value?.name ?? "picture").replace(/\.\w+$/, "");
  return (
    <div class="buttons">
      <button type="button" class={isShown ? "method-shown" : ""} aria-pressed={isShown} onClick={onShow}>
        {duration(seconds)}
      </button>
      <button type="button" title={`Download ${method}: ${bytes(file?.size ?? 0)}`} onClick={() => file && save(file, `${name}-${method}-x${scale}.png`)}>
        <span aria-hidden="true">↓</span>
        <span class="hidden">Download {method}, </span>
        {bytes(file?.size ?? 0)}
      </button>
    </div>
  );
}
