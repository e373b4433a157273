/** What a training reports while it runs: epochs, log, previews. A connection that breaks is resumed. */
import { computed, signal } from "@preact/signals";
import { client, get } from "../../api/client";
import { events, type StreamEvent } from "../../api/events";
import { problemOf } from "../../api/problem";
import { reconnectDelay, sleep } from "../../api/send";
import type { EpochMetrics, Problem, Training, TrainingPreview } from "../../api/types";
import { models } from "../../state/service";
import { logLine } from "./log";

const FLUSH_MS = 250;
const LOG_LINES = 500;

/** The events of one training. Changes are shown a few times a second, however many events come. */
export class RunFeed {
  readonly id: string;
  readonly training = signal<Training | null>(null);
  readonly epochs = signal<readonly EpochMetrics[]>([]);
  readonly log = signal<readonly string[]>([]);
  readonly previews = signal<readonly TrainingPreview[]>([]);
  readonly progress = signal(0);
  /** Of the last load of the training, or of its event stream. */
  readonly problem = computed(() => this.#loadProblem.value ?? this.#streamProblem.value);
  readonly #loadProblem = signal<Problem | null>(null);
  readonly #streamProblem = signal<Problem | null>(null);
  readonly #abort = new AbortController();
  #following = false;
  #lastEventId = "";
  /** Numbers of the newest load, and of the one that is shown: an older response never replaces a newer one. */
  #lastLoad = 0;
  #shownLoad = 0;
  /** The version of which `models` was loaded again. */
  #announced: string | null = null;
  #pending: StreamEvent[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(id: string) {
    this.id = id;
    void this.retry();
  }

  stop(): void {
    this.#abort.abort();
    clearTimeout(this.#timer);
  }

  /** Loads the training again: after what was done to it. */
  async reload(): Promise<void> {
    const load = ++this.#lastLoad;
    try {
      await this.#load(load);
    } catch (error) {
      if (load < this.#shownLoad || this.#abort.signal.aborted) return;
      this.#loadProblem.value = problemOf(error);
      const delay = reconnectDelay(error);
      if (delay !== null) void this.#loadLater(load, delay);
    }
  }

  /** Loads the training, and follows its events again if they ended with an error. */
  async retry(): Promise<void> {
    await Promise.all([this.reload(), this.#follow()]);
  }

  async #load(load: number): Promise<void> {
    const path = { params: { path: { job_id: this.id } }, signal: this.#abort.signal };
    const training = await get(client.GET("/v1/trainings/{job_id}", path));
    if (load < this.#shownLoad) return;
    this.#shownLoad = load;
    this.training.value = training;
    this.progress.value = training.progress;
    this.#loadModels(training);
    const previews = (await get(client.GET("/v1/trainings/{job_id}/previews", path))).data;
    if (load < this.#shownLoad) return;
    this.previews.value = previews;
    this.#loadProblem.value = null;
  }

  /** Loads the training as soon as the service is available again, unless a newer load has begun. */
  async #loadLater(load: number, delay: number): Promise<void> {
    try {
      await sleep(delay, this.#abort.signal);
    } catch {
      return;
    }
    if (load === this.#lastLoad) await this.reload();
  }

  /** Loads the models again, once, if the version of the training is not among them. */
  #loadModels({ model, version }: Training): void {
    const known = models.state.peek().data;
    if (!version || known === null || this.#announced === version) return;
    if (known.some(({ name, versions }) => name === model && versions.includes(version))) return;
    this.#announced = version;
    void models.reload();
  }

  async #follow(): Promise<void> {
    if (this.#following) return;
    this.#following = true;
    this.#streamProblem.value = null;
    try {
      for await (const event of events(`/v1/jobs/${this.id}/events`, this.#abort.signal, this.#lastEventId)) {
        this.#lastEventId = event.id ?? this.#lastEventId;
        this.#pending.push(event);
        this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS);
      }
    } catch (error) {
      this.#streamProblem.value = problemOf(error);
    }
    this.#following = false;
    if (!this.#abort.signal.aborted) this.#flush();
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const arrived = this.#pending;
    this.#pending = [];
    const epochs = arrived.filter(({ name }) => name === "metrics").map(({ data }) => data as unknown as EpochMetrics);
    if (epochs.length > 0) this.epochs.value = [...this.epochs.peek(), ...epochs];
    const lines = arrived.map(logLine).filter((line) => line !== null);
    if (lines.length > 0) this.log.value = [...this.log.peek(), ...lines].slice(-LOG_LINES);
    const progress = arrived.findLast(({ name }) => name === "progress")?.data.progress;
    if (typeof progress === "number") this.progress.value = progress;
    if (arrived.some(({ name }) => name === "status" || name === "preview")) void this.reload();
  }
}
