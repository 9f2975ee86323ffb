/** A drafter's frozen weights as the graphs bind them: projections that read the same input are one matrix. */

import { ModelError } from "../errors.js";
import { asFloat32 } from "../format/floats.js";
import type { Stored } from "../format/safetensors.js";
import { EMBEDDING, PROJECTIONS, type DecoderShape, type Projection } from "./shape.js";
import { bytesOf } from "../format/tensor.js";

/** Groups of projections, with the parts in the order of their rows. */
export const GROUPS = {
  qkv_proj: ["q_proj", "k_proj", "v_proj"],
  o_proj: ["o_proj"],
  gate_up_proj: ["gate_proj", "up_proj"],
  down_proj: ["down_proj"],
} as const satisfies Record<string, readonly Projection[]>;

export type Group = keyof typeof GROUPS;
export const GROUP_NAMES = Object.keys(GROUPS) as Group[];

/** float32, or uint8 of a matrix in blocks of integers. */
export interface Weight {
  readonly dtype: "float32" | "uint8";
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export type Weights = ReadonlyMap<string, Weight>;

const PACKED = ".packed";
const ROWS = ".rows";

/** What a train graph binds, by name: every matrix in blocks is seen as (rows, bytes). */
export function trainWeights(stored: ReadonlyMap<string, Stored>, shape: DecoderShape): Weights {
  const entries = [...fused(stored, shape)].map(([name, weight]) => {
    if (!name.endsWith(PACKED)) return [name, weight] as const;
    return [name.slice(0, -PACKED.length) + ROWS, asRows(weight)] as const;
  });
  return new Map(entries);
}

/** What a decode graph binds, by name: embedding rows are gathered, every other matrix is multiplied. */
export function decodeWeights(stored: ReadonlyMap<string, Stored>, shape: DecoderShape): Weights {
  const weights = new Map(fused(stored, shape));
  const packed = weights.get(EMBEDDING + PACKED);
  if (packed !== undefined) {
    weights.set(EMBEDDING + ROWS, asRows(packed));
    if (!shape.tied) weights.delete(EMBEDDING + PACKED);
  }
  return weights;
}

/** Stacks the rows of each group's projections; what is in no group stays. */
function fused(stored: ReadonlyMap<string, Stored>, shape: DecoderShape): Weights {
  const rest = new Map([...stored].map(([name, tensor]) => [name, asWeight(tensor, name)] as const));
  const found = new Map<string, Weight>();
  for (let layer = 0; layer < shape.layers; layer++) {
    for (const group of GROUP_NAMES) {
      for (const kind of ["weight", "bias", "weight.packed", "weight.scales"]) {
        const parts = GROUPS[group].map((part) => tensorName(layer, part, part, kind));
        if (!rest.has(parts[0] ?? "")) continue;
        found.set(tensorName(layer, GROUPS[group][0], group, kind), stacked(parts.map((part) => taken(rest, part))));
      }
    }
  }
  return new Map([...rest, ...found]);
}

function tensorName(layer: number, owned: Projection, name: string, kind: string): string {
  return `model.layers.${layer}.${PROJECTIONS[owned]}.${name}.${kind}`;
}

function taken(weights: Map<string, Weight>, name: string): Weight {
  const weight = weights.get(name);
  if (weight === undefined) throw new ModelError(`model.safetensors lacks ${name}; fetch the bundle again`);
  weights.delete(name);
  return weight;
}

function asWeight(tensor: Stored, name: string): Weight {
  if (tensor.dtype === "U8") return { dtype: "uint8", shape: tensor.shape, bytes: new Uint8Array(tensor.bytes) };
  const full = asFloat32(tensor, `model.safetensors: ${name}`);
  return { dtype: "float32", shape: full.shape, bytes: bytesOf(full) };
}

function stacked(parts: readonly Weight[]): Weight {
  const [first] = parts as [Weight];
  const rows = parts.reduce((sum, part) => sum + part.shape[0]!, 0);
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.bytes.byteLength, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part.bytes, at);
    at += part.bytes.byteLength;
  }
  return { dtype: first.dtype, shape: [rows, ...first.shape.slice(1)], bytes };
}

/** The same bytes as (rows, bytes of a row). */
function asRows(packed: Weight): Weight {
  const rows = packed.shape[0]!;
  return { ...packed, shape: [rows, packed.bytes.byteLength / rows] };
}
