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
import { again, waitS, type BackOff, type Surroundings } from "./back-off.js";
import { release } from "./fetching.js";
import { PROTOCOL, Refusal, type Gateway, type ReleaseHead } from "./gateway.js";
import { sent } from "./sending.js";
import type { Pending, Store } from "./store.js";
import { comeBackS, termsOf, type Terms } from "./terms.js";

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
  /** Turns in a row that a gateway refused, or was not there for. */
  private failed = 0;

  constructor(
    private readonly parts: PhoneParts,
    private readonly settings: PhoneSettings,
  ) {}

  /** One turn: an update that waits is sent, else the phone checks in and does what it is told. */
  async turn(): Promise<Turn> {
    const { store, surroundings } = this.parts;
    if (store.pending !== undefined && store.pending.until <= surroundings.now()) store.pending = undefined;
    try {
      const turn = store.pending === undefined ? await this.checkIn() : await this.answer(store.pending);
      this.failed = 0;
      return turn;
    } catch (error) {
      if (error instanceof Refusal) return this.refused(error);
      throw error;
    }
  }

  /**
   * What is gone or can never be right is forgotten; what may come right stays for the next turn. That comes where the
   * tries of a call would have gone on: a gateway that is away for long is asked ever more rarely.
   */
  private refused(error: Refusal): Turn {
    if (["NOT_FOUND", "INVALID_ARGUMENT"].includes(error.code)) this.parts.store.pending = undefined;
    if (error.remedy === "stop") throw new UserError(`the gateway refused: ${error.message}`);
    const { backOff } = this.settings;
    this.failed += 1;
    const attempt = this.failed + (error.remedy === "check-in" ? 0 : backOff.tries - 1);
    return {
      kind: "come-back",
      afterS: waitS(attempt, backOff, this.parts.surroundings.random()),
      reason: error.message,
    };
  }

  private async checkIn(): Promise<Turn> {
    const { bundle, gateway, store, surroundings } = this.parts;
    const lessons = this.parts.lessons();
    const request = {
      protocol: PROTOCOL,
      appVersion: this.settings.appVersion,
      base: bundle.base,
      family: this.settings.family,
      release: store.release,
      eligible: lessons.length > 0,
    };
    const { promoted, task, comeBack } = await this.again(() => gateway.checkIn(request));
    const now = surroundings.now();
    if (promoted !== null) await this.putInForce(promoted);
    store.keepOnly([store.release, task?.release?.digest ?? ""]);
    if (task && task.deadlineS > 0) return this.work(termsOf(task, now), lessons);
    const afterS = comeBackS(comeBack?.afterS ?? 0, this.settings.backOff.firstS);
    return { kind: "come-back", afterS, reason: task ? `task ${task.id} is over` : (comeBack?.reason ?? "") };
  }

  private async putInForce(head: ReleaseHead): Promise<void> {
    const { store } = this.parts;
    if (head.base !== this.parts.bundle.base) return; // WRONG_BASE says the rest
    await this.fetched(head); // also one that is in force: its file may have been damaged
    if (head.digest !== store.release) store.release = head.digest;
  }

  private async work(terms: Terms, lessons: readonly Lesson[]): Promise<Turn> {
    const { store } = this.parts;
    const from = await this.fetched(terms.release);
    if (terms.kind === "EVALUATE") return this.report(terms.taskId);
    const pending = await this.trained(terms, from, lessons);
    store.pending = pending;
    return this.answer(pending);
  }

  private async trained(terms: Terms, from: LoraAdapter, lessons: readonly Lesson[]): Promise<Pending> {
    const { taskId, factors, clipNorm, until } = terms;
    const { base, layout } = this.parts.bundle;
    const step = await TrainStep.open(this.parts.bundle);
    try {
      const found = await train(step, from, lessons, { ...this.settings.training, factors });
      const { delta, weight, training } = updateOf(from, found, factors, clipNorm);
      const content = toContent(delta, layout, factors);
      const told = { contentSha256: sha256(content), contentBytes: content.byteLength, weight, training };
      return { head: { taskId, base, layout: layout.fingerprint, release: from.digest, ...told }, until, content };
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
  private async report(taskId: string): Promise<Turn> {
    const { outcome, reason } = await this.again(() => this.parts.gateway.report({ taskId, drafting: {} }));
    return { kind: "answered", taskId, outcome, reason };
  }

  private fetched(head: ReleaseHead): Promise<LoraAdapter> {
    const { bundle, store, gateway, surroundings } = this.parts;
    return release(head, bundle, store, gateway, this.settings.backOff, surroundings);
  }

  private again<Reply>(call: () => Promise<Reply>): Promise<Reply> {
    return again(call, this.settings.backOff, this.parts.surroundings);
  }
}
