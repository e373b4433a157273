/** What every area knows of the service: its models, whether it is ready, and its jobs. */
import { computed, effect, signal, untracked } from "@preact/signals";
import { client, get } from "../api/client";
import type { Job, Model, Operation, Readiness } from "../api/types";
import { AREAS } from "../areas";
import { address } from "../router";
import { poll, Resource } from "./resource";

/** All models that may be used, sorted by `inOrder`. */
export const models = new Resource<Model[]>(async (signal) => {
  const page = await get(client.GET("/v1/models", { signal }));
  return page.data.sort(inOrder);
});

/** The newest hundred jobs. */
export const jobs = new Resource<Job[]>(async (signal) => {
  const page = await get(client.GET("/v1/jobs", { params: { query: { limit: 100 } }, signal }));
  return page.data;
});

/** The last response of `/readyz`; null before the first, or if the service cannot be reached. */
export const readiness = signal<Readiness | null>(null);
export const reachable = signal(true);

export const unfinished = computed(() => (jobs.data ?? []).filter(({ finished_at }) => finished_at === null));
export const waiting = computed(() => unfinished.value.filter(({ status }) => status === "queued").length);

/** The models that can do an operation. */
export function modelsFor(operation: Operation): Model[] {
  return (models.data ?? []).filter((model) => operation in model.operations);
}

/** What versions that are not active can do, by `NAME@VERSION`: their options may be others. */
const cards = signal<ReadonlyMap<string, Model>>(new Map());

/**
 * The model of the address, or the first that can do what the area needs if the address names none.
 *
 * Null while models are being loaded, and if the named model is unknown or cannot do it: no other model takes its place.
 */
const chosenModel = computed<Model | null>(() => {
  const { area, params } = address.value;
  const found = AREAS.find(({ id }) => id === area);
  if (found?.operation === undefined) return null;
  const { operation, prefers = operation } = found;
  const able = modelsFor(operation);
  const first = able.find(({ operations }) => prefers in operations);
  const named = params.get("model");
  return (named === undefined ? first : able.find(({ name }) => name === named)) ?? null;
});

/** The name in the address of a model that is not among those that were loaded; null if there is none. */
export const unknownModel = computed<string | null>(() => {
  const named = address.value.params.get("model");
  return named === undefined || models.data === null || models.data.some(({ name }) => name === named) ? null : named;
});

/** The unknown model for which the models are loaded again, since it may be new; null if they are not. */
export const sought = signal<string | null>(null);

async function seek(name: string): Promise<void> {
  sought.value = name;
  await models.reload();
  if (sought.peek() === name) sought.value = null;
}

/** The version of the address, as `NAME@VERSION`; null if it names none, or the active one. */
const otherVersion = computed<string | null>(() => {
  const model = chosenModel.value;
  const version = address.value.params.get("version");
  return model === null || version === undefined || version === model.version ? null : `${model.name}@${version}`;
});

/** The model of the area, with the operations of the version that the address names. */
export const currentModel = computed<Model | null>(() => {
  const model = chosenModel.value;
  const card = otherVersion.value === null ? undefined : cards.value.get(otherVersion.value);
  if (model === null || card === undefined) return model;
  return { ...model, image: card.image, operations: card.operations, codes: card.codes ?? null };
});

/** Loads the card of a version, once. What the service has none of is left to the request that names it. */
async function loadCard(reference: string): Promise<void> {
  const [name = "", version = ""] = reference.split("@");
  try {
    const { card } = await get(client.GET("/v1/models/{name}/versions/{version}", { params: { path: { name, version } } }));
    cards.value = new Map(cards.peek()).set(reference, card);
  } catch {
    // the area's own request shows what is wrong
  }
}

/** Models of pictures before models of vectors, fast ones before slow ones, then by name. */
function inOrder(a: Model, b: Model): number {
  return Number(isVector(a)) - Number(isVector(b)) || Number(isSlow(a)) - Number(isSlow(b)) || a.name.localeCompare(b.name);
}

/** Whether what a model generates is no picture: a row of numbers. */
export function isVector(model: Pick<Model, "image">): boolean {
  return model.image.height === 1;
}

function isSlow(model: Model): boolean {
  return (model.operations.samples as { sliced?: boolean } | undefined)?.sliced ?? true;
}

async function checkReadiness(): Promise<void> {
  try {
    const response = await fetch("/readyz");
    readiness.value = (await response.json()) as Readiness;
    reachable.value = true;
  } catch {
    readiness.value = null;
    reachable.value = false;
  }
}

/** Loads the models, and keeps readiness and jobs current. */
export function startService(): void {
  void models.reload();
  effect(() => {
    const reference = otherVersion.value;
    if (reference !== null && !cards.peek().has(reference)) void loadCard(reference);
  });
  effect(() => {
    const name = unknownModel.value;
    if (name !== null) untracked(() => void seek(name));
  });
  poll(checkReadiness, () => (readiness.peek()?.status === "ready" ? 5 : 1));
  poll(
    () => jobs.reload(),
    () => (unfinished.peek().length > 0 ? 1 : 5),
  );
}
