/** Methods and options of the enlargement, from the model's schema. */
import type { Model } from "../../api/types";
import { formatValue } from "../../components/form/fields";
import { SchemaForm } from "../../components/form/SchemaForm";
import { RequestCode } from "../../components/RequestCode";
import { address, setParams } from "../../router";
import { enlargements, photograph } from "./enlargements";
import { Methods } from "./Methods";
import { fieldsFor, METHOD, methodField, methodsOf, ONLY, optionsOf, otherFields } from "./request";
import { upscaleSnippet } from "./snippet";
import { shownMethod } from "./view";

export function Options({ model, reference }: { model: Model; reference: string }) {
  const { params } = address.value;
  const fields = otherFields(model);
  const options = optionsOf(model, params);
  const chosen = methodsOf(model, params);
  const scale = Number(options.scale ?? fields.find(({ name }) => name === "scale")?.default ?? 1);
  const done = chosen.filter((method) => enlargements.value.get(method)?.picture);
  const shown = done.find((method) => method === shownMethod.value) ?? done.at(-1) ?? null;
  const failed = [...enlargements.value.values()].find(({ problem }) => problem !== null);
  const choose = (methods: readonly string[]) => {
    const inOrder = methodField(model)?.choices.filter((choice) => methods.includes(choice)) ?? [];
    setParams({ [METHOD]: inOrder.join(",") });
  };
  return (
    <>
      <Methods model={model} chosen={chosen} shown={shown} scale={scale} shownFields={fields.map(({ name }) => name)} onChoose={choose} onShow={(method) => (shownMethod.value = method)} />
      <hr />
      <SchemaForm fields={fields} values={options} problem={failed?.problem ?? null} onChange={(field, value) => setParams({ [field.name]: formatValue(field, value) }, { replace: true })} />
      <hr />
      <RequestCode operation="upscales" body={{ file: photograph.value?.name ?? "photograph.jpg", ...fieldsFor(reference, shown ?? chosen[0] ?? ONLY, options) }} write={upscaleSnippet} />
    </>
  );
}
