/** The form that adds a dataset: from files, a URL, or one of the public sets. */
import { useId } from "preact/hooks";
import { fieldError } from "../../api/problem";
import { Segmented } from "../../components/form/Segmented";
import { ProblemLine } from "../../components/ProblemLine";
import { Progress } from "../../components/Progress";
import { add, cancel, change, fields, files, problem, PUBLIC_SETS, type Source, source, SOURCES, step } from "./additions";
import { AddOptions } from "./AddOptions";
import { DropZone } from "./DropZone";

const SHOWN_FIELDS = ["name", "kind", "resize", "validation", "test", "source_url", "labels"];

export function AddDataset() {
  const busy = step.value !== null;
  const from = source.value;
  const missing = from === "Files" ? files.value.length === 0 : from === "URL" && fields.value.url === "";
  const onSubmit = (event: SubmitEvent) => {
    event.preventDefault();
    void add();
  };
  return (
    <form class="add-dataset" aria-label="Add a dataset" onSubmit={onSubmit}>
      <div class="row">
        <h2>Add a dataset</h2>
        <Segmented label="From" choices={SOURCES} value={from} onChange={(chosen) => (source.value = chosen as Source)} />
      </div>
      <ProblemLine problem={problem.value} shownFields={SHOWN_FIELDS} />
      {from === "Files" && <DropZone disabled={busy} />}
      <div class="add-fields">
        {from === "URL" && <Text name="source_url" label="URL of a ZIP, NPZ or IDX file" type="url" value={fields.value.url} onChange={(url) => change({ url })} />}
        {from === "Public set" && (
          <div class="field">
            <span class="field-name">set</span>
            <Segmented label="Public set" choices={PUBLIC_SETS} value={fields.value.publicSet} onChange={(chosen) => change({ publicSet: chosen as (typeof PUBLIC_SETS)[number] })} />
          </div>
        )}
        <Text name="name" label="name" type="text" value={fields.value.name} placeholder={from === "Public set" ? fields.value.publicSet : "letters, digits, . - _"} onChange={(name) => change({ name })} />
        <div class="buttons add-buttons">
          <button type="submit" class="primary" disabled={busy || missing}>
            {from === "Files" ? "Upload" : "Fetch"}
          </button>
          {busy && (
            <button type="button" onClick={cancel}>
              Cancel
            </button>
          )}
        </div>
      </div>
      {step.value && (
        <div class="stack" role="status">
          <p class="muted">{step.value.text}</p>
          <Progress value={step.value.share} label={step.value.text} />
        </div>
      )}
      <AddOptions />
    </form>
  );
}

interface TextProps {
  /** Of the field in the service's errors. */
  name: string;
  label: string;
  type: "text" | "url";
  value: string;
  placeholder?: string;
  onChange: (value: string) => void;
}

function Text({ name, label, type, value, placeholder, onChange }: TextProps) {
  const id = useId();
  const error = fieldError(problem.value, name);
  return (
    <div class="field">
      <label class="field-name" for={id}>
        {label}
      </label>
      <input
        id={id}
        type="text"
        inputMode={type}
        spellcheck={false}
        autoComplete="off"
        value={value}
        placeholder={placeholder}
        aria-invalid={error !== null}
        aria-describedby={`${id}-error`}
        onInput={(event) => onChange(event.currentTarget.value)}
      />
      <p id={`${id}-error`} class="field-error" role={error === null ? undefined : "alert"}>
        {error}
      </p>
    </div>
  );
}
