/** The norm of an update as a whole, and its bound. */

import { mapped, type FloatTensor, type Floats } from "../format/tensor.js";

/** Euclidean norm over all entries of all tensors, in float64. */
export function l2Norm(tensors: Floats): number {
  let sum = 0;
  for (const { data } of tensors.values()) sum += data.reduce((squares, value) => squares + value * value, 0);
  return Math.sqrt(sum);
}

/** `tensors` scaled down as a whole to a norm of at most `bound`; a device does this before it answers. */
export function clipped(tensors: Floats, bound: number): Map<string, FloatTensor> {
  const norm = l2Norm(tensors);
  const factor = Math.fround(norm > 0 ? Math.min(1, bound / norm) : 1);
  return mapped(tensors, (value) => value * factor);
}
