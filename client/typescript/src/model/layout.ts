/** Which tensors an adapter has: rank, alpha and the decoder it fits. It knows no values. */

import { createHash } from "node:crypto";

import { asObject, countOf, numberOf, parsedObject } from "../format/json.js";
import {
  PROJECTION_NAMES,
  canonicalShape,
  projectionSize,
  pythonFloat,
  readShape,
  type DecoderShape,
} from "./shape.js";

export class LoraLayout {
  /** Name (`lora.{layer}.{projection}.A` or `.B`) to shape of every tensor, in the order of the train graph. */
  readonly shapes: ReadonlyMap<string, readonly [number, number]>;

  constructor(
    readonly rank: number,
    readonly alpha: number,
    readonly shape: DecoderShape,
  ) {
    const shapes = new Map<string, readonly [number, number]>();
    for (let layer = 0; layer < shape.layers; layer++) {
      for (const projection of PROJECTION_NAMES) {
        const [rows, columns] = projectionSize(shape, projection);
        shapes.set(`lora.${layer}.${projection}.A`, [rank, columns]);
        shapes.set(`lora.${layer}.${projection}.B`, [rows, rank]);
      }
    }
    this.shapes = shapes;
  }

  /** From a release head's JSON. */
  static fromJson(text: string, where: string): LoraLayout {
    const value = parsedObject(text, where);
    const shape = readShape(asObject(value["shape"], `${where}: shape`), where);
    return new LoraLayout(countOf(value, "rank", where), numberOf(value, "alpha", where), shape);
  }

  get scaling(): number {
    return this.alpha / this.rank;
  }

  /** SHA-256 over rank, alpha and shape: two adapters add only if these agree. */
  get fingerprint(): string {
    const { rank, alpha, shape } = this;
    const text = `{"alpha": ${pythonFloat(alpha)}, "rank": ${rank}, "shape": ${canonicalShape(shape)}}`;
    return createHash("sha256").update(text).digest("hex");
  }
}
