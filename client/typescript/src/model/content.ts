/**
 * Tensors as plain numbers, as they travel to and from a gateway: float32, little-endian, row-major, one tensor after
 * the other in the layout's order and nothing else. So the size is known before a byte is read.
 */

import { createHash } from "node:crypto";

import { factorOf } from "./adapter.js";
import type { LoraLayout } from "./layout.js";
import { ModelError } from "../errors.js";
import { bytesOf, held, sizeOf, type FloatTensor, type Floats } from "../format/tensor.js";

export const FACTORS = ["A", "B"] as const;

/** How long the content of a layout's tensors of some factors is. */
export function contentBytes(layout: LoraLayout, factors: readonly string[] = FACTORS): number {
  return named(layout, factors).reduce((sum, [, shape]) => sum + 4 * sizeOf(shape), 0);
}

export function toContent(tensors: Floats, layout: LoraLayout, factors: readonly string[] = FACTORS): Uint8Array {
  return Buffer.concat(named(layout, factors).map(([name]) => bytesOf(held(tensors, name))));
}

/** Every tensor of a layout. */
export function fromContent(content: Uint8Array, layout: LoraLayout): Floats {
  if (content.byteLength !== contentBytes(layout)) {
    throw new ModelError(`content has ${content.byteLength} bytes, expected ${contentBytes(layout)}`);
  }
  const numbers = new Float32Array(new Uint8Array(content).buffer);
  const tensors = new Map<string, FloatTensor>();
  let at = 0;
  for (const [name, shape] of named(layout, FACTORS)) {
    tensors.set(name, { shape, data: numbers.slice(at, at + sizeOf(shape)) });
    at += sizeOf(shape);
  }
  return tensors;
}

/** SHA-256, hexadecimal. */
export function sha256(content: Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}

function named(layout: LoraLayout, factors: readonly string[]): [string, readonly [number, number]][] {
  return [...layout.shapes].filter(([name]) => factors.includes(factorOf(name)));
}
