/** A device's answer to a training task: the clipped change, its weight, sums. No text, no tokens. */

import { taughtRows } from "./lesson.js";
import { clipped } from "./clipping.js";
import { only, type Trained } from "./training.js";
import type { LoraAdapter } from "../model/adapter.js";
import type { Floats } from "../format/tensor.js";

export interface Update {
  /** The change of each tensor that may change. */
  readonly delta: Floats;
  /** Tokens that the target verified: each is judged in one row. */
  readonly weight: number;
  readonly training: { readonly steps: number; readonly positions: number; readonly loss: number };
}

/** The update that takes `from` to what was trained, its norm as a whole at most `clipNorm`. */
export function updateOf(from: LoraAdapter, trained: Trained, factors: readonly string[], clipNorm: number): Update {
  return {
    delta: clipped(only(trained.adapter.minus(from), factors), clipNorm),
    weight: trained.used.reduce((sum, lesson) => sum + taughtRows(lesson), 0),
    training: { steps: trained.losses.length, positions: trained.positions, loss: trained.loss },
  };
}
