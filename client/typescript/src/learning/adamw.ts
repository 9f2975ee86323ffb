/** AdamW with decoupled weight decay (Loshchilov & Hutter 2019), rounded to float32 after each operation. */

import type { LoraAdapter } from "../model/adapter.js";
import { clipped } from "./clipping.js";
import { held, type FloatTensor, type Floats, zeros } from "../format/tensor.js";

export interface AdamWConfig {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
  /** Bound on the gradient's norm over all tensors. */
  readonly maxGradNorm: number;
}

export const ADAMW: AdamWConfig = {
  learningRate: 3e-4,
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0,
  maxGradNorm: 1,
};

const { fround, sqrt } = Math;

export class AdamW {
  private step = 0;
  private readonly means = new Map<string, FloatTensor>();
  private readonly squares = new Map<string, FloatTensor>();

  constructor(private readonly config: AdamWConfig = ADAMW) {}

  /** One step on the tensors that `gradient` names; its norm over all of them is bounded first. */
  update(adapter: LoraAdapter, gradient: Floats): LoraAdapter {
    this.step += 1;
    const bounded = clipped(gradient, this.config.maxGradNorm);
    const changes = [...bounded].map(([name, g]) => [name, this.change(name, g, held(adapter.arrays, name))] as const);
    return adapter.plus(new Map(changes));
  }

  private change(name: string, g: FloatTensor, value: FloatTensor): FloatTensor {
    const { beta1, beta2 } = this.config;
    const mean = average(this.means.get(name), g.data, beta1, (x) => x);
    const square = average(this.squares.get(name), g.data, beta2, (x) => fround(x * x));
    this.means.set(name, { shape: g.shape, data: mean });
    this.squares.set(name, { shape: g.shape, data: square });
    const rate = fround(-this.config.learningRate);
    const epsilon = fround(this.config.epsilon);
    const decay = fround(this.config.weightDecay);
    const [meanShare, squareShare] = [fround(1 - beta1 ** this.step), fround(1 - beta2 ** this.step)];
    const change = zeros(g.shape);
    for (let i = 0; i < mean.length; i++) {
      const spread = fround(sqrt(fround(square[i]! / squareShare)));
      const scaled = fround(fround(mean[i]! / meanShare) / fround(spread + epsilon));
      change.data[i] = rate * fround(scaled + fround(decay * value.data[i]!));
    }
    return change;
  }
}

function average(
  old: FloatTensor | undefined,
  fresh: Float32Array,
  beta: number,
  entry: (value: number) => number,
): Float32Array {
  const [keep, take] = [fround(beta), fround(1 - beta)];
  return fresh.map((value, i) => {
    const added = fround(entry(value) * take);
    return old === undefined ? added : fround(old.data[i]! * keep) + added;
  });
}
