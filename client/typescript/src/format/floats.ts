/** float32 and integers out of stored tensors: widens half precision, refuses the rest. It knows no model. */

import { ModelError } from "../errors.js";
import type { Stored } from "./safetensors.js";
import type { FloatTensor } from "./tensor.js";

/** A stored F32, F16 or BF16 tensor as float32, exactly. */
export function asFloat32(stored: Stored, where: string): FloatTensor {
  switch (stored.dtype) {
    case "F32":
      return { shape: stored.shape, data: new Float32Array(aligned(stored.bytes)) };
    case "F16":
      return { shape: stored.shape, data: Float32Array.from(new Uint16Array(aligned(stored.bytes)), fromHalf) };
    case "BF16":
      return { shape: stored.shape, data: fromBfloat(new Uint16Array(aligned(stored.bytes))) };
    default:
      throw new ModelError(`${where} holds ${stored.dtype}, expected floats`);
  }
}

/** A stored I32 or I64 tensor as numbers. */
export function asIntegers(stored: Stored, where: string): number[] {
  if (stored.dtype === "I32") return Array.from(new Int32Array(aligned(stored.bytes)));
  if (stored.dtype === "I64") return Array.from(new BigInt64Array(aligned(stored.bytes)), Number);
  throw new ModelError(`${where} holds ${stored.dtype}, expected integers`);
}

/** A stored BOOL tensor. */
export function asFlags(stored: Stored, where: string): boolean[] {
  if (stored.dtype !== "BOOL") throw new ModelError(`${where} holds ${stored.dtype}, expected BOOL`);
  return Array.from(stored.bytes, (byte) => byte !== 0);
}

/** A copy at the beginning of memory of its own: typed arrays may not begin at any byte. */
function aligned(bytes: Uint8Array): ArrayBuffer {
  const copy = new Uint8Array(bytes.byteLength);
  copy.set(bytes);
  return copy.buffer;
}

/** IEEE 754 binary16: a sign, 5 bits of exponent, 10 of fraction. */
function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** bfloat16 is the upper half of a float32. */
function fromBfloat(halves: Uint16Array): Float32Array {
  return new Float32Array(Uint32Array.from(halves, (bits) => bits << 16).buffer);
}
