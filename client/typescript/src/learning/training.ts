/** Training steps over lessons in their order, and again from the first where there are more steps. */

import type { LoraAdapter } from "../model/adapter.js";
import { factorOf } from "../model/adapter.js";
import { ADAMW, AdamW, type AdamWConfig } from "./adamw.js";
import { l2Norm } from "./clipping.js";
import { UserError } from "../errors.js";
import type { Lesson } from "./lesson.js";
import { OBJECTIVE, type Objective } from "./objective.js";
import type { Floats } from "../format/tensor.js";
import type { TrainStep } from "../runtime/train-step.js";

export interface TrainingConfig {
  /** By default as many as a single pass over the lessons takes. */
  readonly steps?: number;
  readonly batchSize: number;
  /** LoRA factors that may change: A, B or both. */
  readonly factors: readonly string[];
  readonly objective: Objective;
  readonly optimizer: AdamWConfig;
}

export const TRAINING: TrainingConfig = { batchSize: 8, factors: ["A", "B"], objective: OBJECTIVE, optimizer: ADAMW };

export interface Trained {
  readonly adapter: LoraAdapter;
  readonly losses: readonly number[];
  /** Rows that taught something, over all steps. */
  readonly positions: number;
  /** Sum over those rows. */
  readonly loss: number;
  /** The lessons that were trained on, each once. */
  readonly used: readonly Lesson[];
}

/** Trains from an adapter; a loss or gradient that is not finite ends it without a result. */
export async function train(
  step: TrainStep,
  from: LoraAdapter,
  lessons: readonly Lesson[],
  config: TrainingConfig,
): Promise<Trained> {
  if (lessons.length === 0) throw new UserError("no lessons, expected at least one; write some on the device first");
  const batches = Math.ceil(lessons.length / config.batchSize);
  const count = config.steps ?? batches;
  const optimizer = new AdamW(config.optimizer);
  const losses: number[] = [];
  let [adapter, positions, loss] = [from, 0, 0];
  for (let i = 0; i < count; i++) {
    const first = (i % batches) * config.batchSize;
    const found = await step.gradient(adapter, lessons.slice(first, first + config.batchSize), config.objective);
    checkFinite(found.loss, found.arrays);
    adapter = optimizer.update(adapter, only(found.arrays, config.factors));
    losses.push(found.loss);
    positions += found.rows;
    loss += found.loss * found.rows;
  }
  return { adapter, losses, positions, loss, used: lessons.slice(0, count * config.batchSize) };
}

/** The tensors of some factors. */
export function only(tensors: Floats, factors: readonly string[]): Floats {
  return new Map([...tensors].filter(([name]) => factors.includes(factorOf(name))));
}

function checkFinite(loss: number, gradient: Floats): void {
  if (!Number.isFinite(loss) || !Number.isFinite(l2Norm(gradient))) {
    throw new UserError("training diverged: the loss or its gradient is not finite; try other lessons");
  }
}
