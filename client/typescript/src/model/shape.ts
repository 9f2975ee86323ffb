/** The shape of a Llama-type decoder, as the manifest of a bundle has it. It knows no weights. */

import { countOf, flagOf, numberOf, type JsonObject } from "../format/json.js";

/** Fields under their names in JSON, in the order in which fingerprints are taken, with the kind of their values. */
const FIELDS = {
  context_limit: "count",
  head_dim: "count",
  heads: "count",
  hidden_size: "count",
  intermediate_size: "count",
  kv_heads: "count",
  layers: "count",
  qkv_bias: "flag",
  rms_eps: "real",
  rope_theta: "real",
  tied: "flag",
  vocab_size: "count",
} as const;

type Field = keyof typeof FIELDS;
export type DecoderShape = { readonly [F in Field]: (typeof FIELDS)[F] extends "flag" ? boolean : number };

/** Projections of a layer that carry an adapter, in their order, with the module that owns them. */
export const PROJECTIONS = {
  q_proj: "self_attn",
  k_proj: "self_attn",
  v_proj: "self_attn",
  o_proj: "self_attn",
  gate_proj: "mlp",
  up_proj: "mlp",
  down_proj: "mlp",
} as const;

export type Projection = keyof typeof PROJECTIONS;
export const PROJECTION_NAMES = Object.keys(PROJECTIONS) as Projection[];
export const EMBEDDING = "model.embed_tokens.weight";

const READERS = { count: countOf, real: numberOf, flag: flagOf };

export function readShape(value: JsonObject, where: string): DecoderShape {
  const fields = Object.entries(FIELDS).map(([name, kind]) => [name, READERS[kind](value, name, where)] as const);
  return Object.fromEntries(fields) as DecoderShape;
}

/** (out, in) features of a projection. */
export function projectionSize(shape: DecoderShape, projection: Projection): readonly [number, number] {
  const { hidden_size: hidden, intermediate_size: inner } = shape;
  const queries = shape.heads * shape.head_dim;
  const keys = shape.kv_heads * shape.head_dim;
  const sizes = {
    q_proj: [queries, hidden],
    k_proj: [keys, hidden],
    v_proj: [keys, hidden],
    o_proj: [hidden, queries],
    gate_proj: [inner, hidden],
    up_proj: [inner, hidden],
    down_proj: [hidden, inner],
  } as const;
  return sizes[projection];
}

/** As Python's `json.dumps(shape, sort_keys=True)` writes it: what fingerprints are taken over. */
export function canonicalShape(shape: DecoderShape): string {
  const written = Object.entries(FIELDS).map(([name, kind]) => {
    const value = shape[name as Field];
    return `"${name}": ${kind === "real" ? pythonFloat(value as number) : String(value)}`;
  });
  return `{${written.join(", ")}}`;
}

/** As Python writes a float: always with a point or an exponent, the latter of two digits at least. */
export function pythonFloat(value: number): string {
  const [digits = "", exponent = "0"] = value.toExponential().split("e");
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  const plain = String(value);
  return plain.includes(".") ? plain : `${plain}.0`;
}
