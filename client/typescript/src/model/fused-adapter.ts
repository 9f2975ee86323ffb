/** An adapter as the decode graph takes it: As stacked, Bs as blocks on a diagonal, B times LoRA's scaling. */

import type { LoraAdapter } from "./adapter.js";
import { held, zeros, type FloatTensor, type Floats } from "../format/tensor.js";
import { GROUPS, GROUP_NAMES } from "./weights.js";

/** By input name, `lora.{layer}.{group}.A` and `.B`. */
export function fusedAdapter(adapter: LoraAdapter): Floats {
  const found = new Map<string, FloatTensor>();
  for (let layer = 0; layer < adapter.layout.shape.layers; layer++) {
    for (const group of GROUP_NAMES) {
      const parts = (factor: string): FloatTensor[] =>
        GROUPS[group].map((part) => held(adapter.arrays, `lora.${layer}.${part}.${factor}`));
      found.set(`lora.${layer}.${group}.A`, stacked(parts("A")));
      found.set(`lora.${layer}.${group}.B`, diagonal(parts("B"), Math.fround(adapter.layout.scaling)));
    }
  }
  return found;
}

function stacked(parts: readonly FloatTensor[]): FloatTensor {
  const rows = parts.reduce((sum, part) => sum + part.shape[0]!, 0);
  const whole = zeros([rows, parts[0]!.shape[1]!]);
  let at = 0;
  for (const part of parts) {
    whole.data.set(part.data, at);
    at += part.data.length;
  }
  return whole;
}

function diagonal(blocks: readonly FloatTensor[], scaling: number): FloatTensor {
  const width = blocks.reduce((sum, block) => sum + block.shape[1]!, 0);
  const whole = zeros([blocks.reduce((sum, block) => sum + block.shape[0]!, 0), width]);
  let row = 0;
  let column = 0;
  for (const { shape, data } of blocks) {
    const [rows, columns] = shape as [number, number];
    for (let i = 0; i < rows; i++) {
      const line = data.subarray(i * columns, (i + 1) * columns).map((value) => value * scaling);
      whole.data.set(line, (row + i) * width + column);
    }
    row += rows;
    column += columns;
  }
  return whole;
}
