/** A LoRA adapter in memory: arithmetic, digest, and the bytes that cross the network. It knows no directory. */

import { createHash } from "node:crypto";

import { FingerprintError, ModelError } from "../errors.js";
import { asFloat32 } from "../format/floats.js";
import type { LoraLayout } from "./layout.js";
import { readSafetensors, writeFloats, type Stored } from "../format/safetensors.js";
import { bytesOf, held, mapped, sameShape, type FloatTensor, type Floats } from "../format/tensor.js";

/** `A` is (rank, in), `B` is (out, rank); a projection computes `x Wᵀ + alpha/rank (x Aᵀ) Bᵀ`. Never written into. */
export class LoraAdapter {
  constructor(
    readonly layout: LoraLayout,
    readonly arrays: Floats,
  ) {}

  /** Reads what `toBytes` wrote. */
  static read(content: Uint8Array, layout: LoraLayout, where: string): LoraAdapter {
    return LoraAdapter.fromStored(readSafetensors(content, where), layout, where, (name) => name);
  }

  /** Takes an adapter's tensors, each under the name that `named` gives it in the file. */
  static fromStored(
    stored: ReadonlyMap<string, Stored>,
    layout: LoraLayout,
    where: string,
    named: (name: string) => string,
  ): LoraAdapter {
    const arrays = new Map<string, FloatTensor>();
    for (const [name, shape] of layout.shapes) {
      const tensor = stored.get(named(name));
      if (tensor === undefined || !sameShape(tensor.shape, shape)) {
        const given = tensor === undefined ? "missing" : `[${tensor.shape.join(", ")}]`;
        throw new FingerprintError(`${where}: ${named(name)} is ${given}, expected [${shape.join(", ")}]`);
      }
      arrays.set(name, asFloat32(tensor, `${where}: ${name}`));
    }
    if (stored.size !== arrays.size)
      throw new ModelError(`${where} has ${stored.size} tensors, expected ${arrays.size}`);
    return new LoraAdapter(layout, arrays);
  }

  /** SHA-256 over layout and values, in the layout's order. */
  get digest(): string {
    const hash = createHash("sha256").update(this.layout.fingerprint);
    for (const name of this.layout.shapes.keys()) hash.update(bytesOf(held(this.arrays, name)));
    return hash.digest("hex");
  }

  /** This adapter with `delta` added; tensors that `delta` lacks stay. */
  plus(delta: Floats): LoraAdapter {
    const changed = mapped(delta, (value, at, name) => held(this.arrays, name).data[at]! + value);
    return new LoraAdapter(this.layout, new Map([...this.arrays, ...changed]));
  }

  /** The change that takes `other` to this adapter. */
  minus(other: LoraAdapter): Map<string, FloatTensor> {
    return mapped(this.arrays, (value, at, name) => value - held(other.arrays, name).data[at]!);
  }

  toBytes(): Uint8Array {
    return writeFloats(this.arrays);
  }
}

/** `A` or `B` of a tensor's name. */
export function factorOf(name: string): string {
  return name.slice(name.lastIndexOf(".") + 1);
}
