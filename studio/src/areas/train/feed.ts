/** What a training reports while it runs: epochs, log, previews. A connection that breaks is resumed. */
import { signal } from "@preact/signals";
import { client, get } from "../../api/client";
import { events, type StreamEvent } from "../../api/events";
import { problemOf } from "../../api/problem";
import type { EpochMetrics, Problem, Training, TrainingPreview } from "../../api/types";
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
  readonly problem = signal<Problem | null>(null);
  readonly #abort = new AbortController();
  #pending: StreamEvent[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(id: string) {
    this.id = id;
    void this.#follow();
  }

  stop(): void {
    this.#abort.abort();
    clearTimeout(this.#timer);
  }

  /** Loads the training again: after what was done to it. */
  async reload(): Promise<void> {
    const path = { params: { path: { job_id: this.id } }, signal: this.#abort.signal };
    try {
      const training = await get(client.GET("/v1/trainings/{job_id}", path));
      this.training.value = training;
      this.progress.value = training.progress;
      this.previews.value = (await get(client.GET("/v1/trainings/{job_id}/previews", path))).data;
    } catch (error) {
      this.problem.value = problemOf(error);
    }
  }

  async #follow(): Promise<void> {
    await this.reload();
    if (this.problem.value !== null) return;
    try {
      for await (const event of events(`/v1/jobs/${this.id}/events`, this.#abort.signal)) {
        this.#pending.push(event);
        this.#timer ??= setTimeout(() => this.#flush(), FLUSH_MS);
      }
    } catch (error) {
      this.problem.value = problemOf(error);
    }
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
