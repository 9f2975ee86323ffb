/** The train graph over a drafter's frozen weights: lessons in, loss and LoRA gradients out. It knows no optimiser. */

import type { InferenceSession, Tensor } from "onnxruntime-node";

import type { LoraAdapter } from "../model/adapter.js";
import { batchInputs } from "./batch.js";
import type { Bundle } from "../model/bundle.js";
import { judgedRows, taughtRows, type Lesson } from "../learning/lesson.js";
import type { Objective } from "../learning/objective.js";
import { floatInput, floatOutput, openSession, weightInput } from "./session.js";
import type { FloatTensor, Floats } from "../format/tensor.js";
import { trainWeights } from "../model/weights.js";

export interface Gradient {
  /** Mean over the rows that teach something. */
  readonly loss: number;
  readonly rows: number;
  /** Mean Σ min(p, q) of the rows with a teacher; NaN if there is none. */
  readonly overlap: number;
  readonly arrays: Floats;
}

export class TrainStep {
  private constructor(
    private readonly session: InferenceSession,
    private readonly weights: Readonly<Record<string, Tensor>>,
  ) {}

  static async open(bundle: Bundle, threads = 1): Promise<TrainStep> {
    const weights = [...trainWeights(bundle.weights, bundle.layout.shape)];
    const session = await openSession(bundle.trainGraph, { threads, varying: true });
    return new TrainStep(session, Object.fromEntries(weights.map(([name, weight]) => [name, weightInput(weight)])));
  }

  /** Forward and backward on one batch. */
  async gradient(adapter: LoraAdapter, lessons: readonly Lesson[], objective: Objective): Promise<Gradient> {
    // Arrays of one client, so with an axis of length 1 before their own.
    const lora = [...adapter.arrays].map(([name, { shape, data }]) => [
      name,
      floatInput({ shape: [1, ...shape], data }),
    ]);
    const inputs = { ...this.weights, ...Object.fromEntries(lora), ...batchInputs(lessons, objective) };
    const found = await this.session.run(inputs);
    const rows = lessons.reduce((sum, lesson) => sum + judgedRows(lesson).length, 0);
    const taught = lessons.reduce((sum, lesson) => sum + taughtRows(lesson), 0);
    const arrays = new Map<string, FloatTensor>();
    for (const [name, { shape }] of adapter.arrays) {
      arrays.set(name, { shape, data: floatOutput(found[`grad.${name}`], `grad.${name}`) });
    }
    const [loss = NaN] = floatOutput(found["loss"], "loss");
    const [overlap = NaN] = floatOutput(found["overlap"], "overlap");
    return { loss, rows, overlap: (overlap * Math.max(1, rows)) / taught, arrays };
  }

  async close(): Promise<void> {
    await this.session.release();
  }
}
