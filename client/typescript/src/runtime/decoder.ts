/** The drafter's decode graph with one context: KV buffers that grow with the text, rewound by lowering a length. */

import { Tensor, type InferenceSession } from "onnxruntime-node";

import type { LoraAdapter } from "../model/adapter.js";
import type { Bundle } from "../model/bundle.js";
import { UserError } from "../errors.js";
import { fusedAdapter } from "../model/fused-adapter.js";
import { withFilePerWeight } from "../model/graph.js";
import { floatInput, floatOutput, int32Input, int64Input, openSession } from "./session.js";
import { zeros } from "../format/tensor.js";
import { decodeWeights } from "../model/weights.js";

/** Rows of a context's first buffers; they double from there. */
const FIRST_ROWS = 256;

export class Decoder {
  /** (heads, head size) of each KV buffer by input name; a graph may pad its heads, so it is asked. */
  private readonly sizes: ReadonlyMap<string, readonly [number, number]>;
  private caches = new Map<string, Tensor>();
  private lora = new Map<string, Tensor>();
  private rows = 0;
  private used = 0;

  private constructor(
    private readonly session: InferenceSession,
    private readonly bundle: Bundle,
  ) {
    this.sizes = cacheSizes(session);
  }

  /** Opens the graph with an adapter, by default the one that changes nothing, and an empty context. */
  static async open(bundle: Bundle, adapter: LoraAdapter = bundle.adapter(), threads = 1): Promise<Decoder> {
    const weights = decodeWeights(bundle.weights, bundle.layout.shape);
    const files = new Map([...weights].map(([name, weight]) => [name, weight.bytes]));
    const session = await openSession(withFilePerWeight(bundle.decodeGraph), { files, threads });
    const decoder = new Decoder(session, bundle);
    decoder.adapt(adapter);
    return decoder;
  }

  /** Tokens that the context holds. */
  get length(): number {
    return this.used;
  }

  /** Puts an adapter in force and forgets the context, whose keys are of the one before. */
  adapt(adapter: LoraAdapter): void {
    this.lora = new Map([...fusedAdapter(adapter)].map(([name, tensor]) => [name, floatInput(tensor)]));
    this.used = 0;
  }

  /** Drops what is behind the first `length` tokens. */
  rewind(length: number): void {
    this.used = Math.min(length, this.used);
  }

  /**
   * Appends tokens, at least one, to the context.
   *
   * @param kept how many of the last rows are wanted.
   * @returns (kept, vocabulary) logits, row-major: row i is of the token behind the i-th of the kept ones.
   */
  async score(tokens: readonly number[], kept: number = tokens.length): Promise<Float32Array> {
    const end = this.used + tokens.length;
    this.grow(end);
    const inputs = {
      ...Object.fromEntries([...this.caches, ...this.lora]),
      tokens: int64Input(tokens, [tokens.length]),
      kept: int64Input([kept], [1]),
      past: int32Input(end - 1, [1, 1]),
      total: int32Input(end, []),
    };
    // The buffers are given as outputs too, so that a row is written in place.
    const written = [...this.caches].map(([name, cache]) => [name.replace(".", "_out."), cache] as const);
    const found = await this.session.run(inputs, { ...Object.fromEntries(written), logits: null });
    this.used = end;
    return floatOutput(found["logits"], "logits");
  }

  async close(): Promise<void> {
    await this.session.release();
  }

  /** Doubles the KV buffers until they hold `end` rows, up to the limit; what is held is copied. */
  private grow(end: number): void {
    const limit = this.bundle.contextLimit;
    if (end > limit) throw new UserError(`${end} tokens, the drafter's context holds ${limit}; use a shorter text`);
    if (end <= this.rows) return;
    let rows = Math.max(FIRST_ROWS, this.rows);
    while (rows < end) rows *= 2;
    rows = Math.min(rows, limit);
    const widened = [...this.sizes].map(([name, [heads, size]]) => {
      return [name, this.widened(this.caches.get(name), [1, heads, rows, size])] as const;
    });
    this.caches = new Map(widened);
    this.rows = rows;
  }

  private widened(old: Tensor | undefined, shape: readonly [number, number, number, number]): Tensor {
    const [, heads, rows, size] = shape;
    const cache = zeros(shape);
    for (let head = 0; old !== undefined && head < heads; head++) {
      const values = floatOutput(old, "cache").subarray(head * this.rows * size, (head * this.rows + this.used) * size);
      cache.data.set(values, head * rows * size);
    }
    return floatInput(cache);
  }
}

function cacheSizes(session: InferenceSession): Map<string, readonly [number, number]> {
  const sizes = new Map<string, readonly [number, number]>();
  for (const input of session.inputMetadata) {
    if (input.isTensor && /^(key|value)\./u.test(input.name)) {
      sizes.set(input.name, [Number(input.shape[1]), Number(input.shape[3])]);
    }
  }
  return sizes;
}

/** The likeliest continuation of a text, token by token. */
export async function greedy(decoder: Decoder, prompt: readonly number[], count: number): Promise<number[]> {
  const found: number[] = [];
  for (let next = prompt; found.length < count; next = found.slice(-1)) {
    found.push(argmax(await decoder.score(next, 1)));
  }
  return found;
}

/** The first of the largest. */
export function argmax(row: Float32Array): number {
  return row.reduce((best, value, at) => (value > row[best]! ? at : best), 0);
}
