/**
 * A device in a fleet: checks in, fetches, trains, sends, and keeps what it must over a restart. It knows neither gRPC
 * nor how lessons come to be. docs/device-protocol.md draws its states.
 */

import { UserError } from "../errors.js";
import type { Lesson } from "../learning/lesson.js";
import { train, type TrainingConfig } from "../learning/training.js";
import { updateOf } from "../learning/update.js";
import type { LoraAdapter } from "../model/adapter.js";
import type { Bundle } from "../model/bundle.js";
import { sha256, toContent } from "../model/content.js";
import { TrainStep } from "../runtime/train-step.js";
import { again, type BackOff, type Surroundings } from "./back-off.js";
import { release } from "./fetching.js";
import { PROTOCOL, Refusal, type Gateway, type ReleaseHead, type Task } from "./gateway.js";
import { sent } from "./sending.js";
import type { Pending, Store } from "./store.js";

/** What became of one turn. */
export type Turn =
  | { readonly kind: "come-back"; readonly afterS: number; readonly reason: string }
  | { readonly kind: "answered"; readonly taskId: string; readonly outcome: string; readonly reason: string };

export interface PhoneSettings {
  readonly appVersion: string;
  /** Name of the target's vocabulary, as in the bundle's manifest. */
  readonly family: string;
  readonly training: TrainingConfig;
  readonly backOff: BackOff;
}

export interface PhoneParts {
  readonly bundle: Bundle;
  readonly store: Store;
  readonly gateway: Gateway;
  /** What the device may learn from now; without any it does not train. */
  readonly lessons: () => readonly Lesson[];
  readonly surroundings: Surroundings;
}

export class Phone {
  constructor(
    private readonly parts: PhoneParts,
    private readonly settings: PhoneSettings,
  ) {}

  /** One turn: an update that waits is sent, else the phone checks in and does what it is told. */
  async turn(): Promise<Turn> {
    const { store, surroundings } = this.parts;
    if (store.pending !== undefined && store.pending.until <= surroundings.now()) store.pending = undefined;
    try {
      return store.pending === undefined ? await this.checkIn() : await this.answer(store.pending);
    } catch (error) {
      if (error instanceof Refusal) return this.refused(error);
      throw error;
    }
  }

  /** What is gone is forgotten; what may come right stays for the next turn; the rest is told. */
  private refused(error: Refusal): Turn {
    const { store } = this.parts;
    if (error.remedy === "check-in" || error.remedy === "stop") store.pending = undefined;
    if (error.remedy === "check-in") return { kind: "come-back", afterS: 0, reason: error.message };
    throw new UserError(`the gateway refused: ${error.message}`);
  }

  private async checkIn(): Promise<Turn> {
    const { bundle, gateway, lessons, store } = this.parts;
    const request = {
      protocol: PROTOCOL,
      appVersion: this.settings.appVersion,
      base: bundle.base,
      family: this.settings.family,
      release: store.release,
      eligible: lessons().length > 0,
    };
    const reply = await this.again(() => gateway.checkIn(request));
    if (reply.promoted !== null) await this.putInForce(reply.promoted);
    if (reply.task) return this.work(reply.task);
    return { kind: "come-back", afterS: reply.comeBack?.afterS ?? 0, reason: reply.comeBack?.reason ?? "" };
  }

  private async putInForce(head: ReleaseHead): Promise<void> {
    const { store } = this.parts;
    if (head.digest === store.release || head.base !== this.parts.bundle.base) return; // WRONG_BASE says the rest
    await this.fetched(head);
    store.release = head.digest;
  }

  private async work(task: Task): Promise<Turn> {
    if (task.release === null) throw new UserError(`task ${task.id} names no release; the gateway is of another version`);
    const started = this.parts.surroundings.now();
    const from = await this.fetched(task.release);
    this.parts.store.keepOnly([this.parts.store.release, task.release.digest]);
    if (task.kind !== "TRAIN") return this.report(task);
    const pending = await this.trained(task, from, started + task.deadlineS);
    this.parts.store.pending = pending;
    return this.answer(pending);
  }

  private async trained(task: Task, from: LoraAdapter, until: number): Promise<Pending> {
    const { bundle, lessons } = this.parts;
    const step = await TrainStep.open(bundle);
    try {
      const config = { ...this.settings.training, factors: task.factors };
      const { delta, weight, training } = updateOf(from, await train(step, from, lessons(), config), task.factors, task.clipNorm);
      const content = toContent(delta, bundle.layout, task.factors);
      const [contentSha256, contentBytes] = [sha256(content), content.byteLength];
      const [layout, digest] = [bundle.layout.fingerprint, from.digest];
      const head = { taskId: task.id, contentSha256, contentBytes, base: bundle.base, layout, release: digest, weight, training };
      return { head, until, content };
    } finally {
      await step.close();
    }
  }

  /** Sends an update, and forgets it once it is answered, however. */
  private async answer(pending: Pending): Promise<Turn> {
    const { gateway, store, surroundings } = this.parts;
    const { outcome, reason } = await sent(pending, gateway, this.settings.backOff, surroundings);
    store.pending = undefined;
    return { kind: "answered", taskId: pending.head.taskId, outcome, reason };
  }

  /** This device has no target, so it can measure nothing: its sums are zero, which changes no sum. */
  private async report(task: Task): Promise<Turn> {
    const { outcome, reason } = await this.again(() => this.parts.gateway.report({ taskId: task.id, drafting: {} }));
    return { kind: "answered", taskId: task.id, outcome, reason };
  }

  private fetched(head: ReleaseHead): Promise<LoraAdapter> {
    const { bundle, store, gateway, surroundings } = this.parts;
    return release(head, bundle, store, gateway, this.settings.backOff, surroundings);
  }

  private again<Reply>(call: () => Promise<Reply>): Promise<Reply> {
    return again(call, this.settings.backOff, this.parts.surroundings);
  }
}
