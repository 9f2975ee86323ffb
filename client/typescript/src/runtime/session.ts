/** ONNX Runtime: sessions and tensors. It knows no graph. */

import { InferenceSession, Tensor } from "onnxruntime-node";

import { ModelError, firstLine } from "../errors.js";
import type { FloatTensor } from "../format/tensor.js";
import type { Weight } from "../model/weights.js";

export interface SessionOptions {
  /** Stand-ins for the graph's external files, by name. */
  readonly files?: ReadonlyMap<string, Uint8Array>;
  readonly threads: number;
  /** Sizes differ from run to run, so memory is not planned ahead. */
  readonly varying?: boolean;
}

export async function openSession(graph: Uint8Array, options: SessionOptions): Promise<InferenceSession> {
  const planned = options.varying !== true;
  try {
    return await InferenceSession.create(graph, {
      executionProviders: ["cpu"],
      externalData: [...(options.files ?? [])].map(([path, data]) => ({ path, data })),
      intraOpNumThreads: options.threads,
      interOpNumThreads: 1,
      enableMemPattern: planned,
      logSeverityLevel: 4,
    });
  } catch (error) {
    throw new ModelError(`a graph cannot be opened by ONNX Runtime: ${firstLine(error)}`);
  }
}

export function floatInput({ shape, data }: FloatTensor): Tensor {
  return new Tensor("float32", data, shape);
}

export function int64Input(values: readonly number[], shape: readonly number[]): Tensor {
  return new Tensor("int64", BigInt64Array.from(values, BigInt), shape);
}

export function int32Input(value: number, shape: readonly number[]): Tensor {
  return new Tensor("int32", Int32Array.of(value), shape);
}

export function weightInput({ dtype, shape, bytes }: Weight): Tensor {
  if (dtype === "uint8") return new Tensor("uint8", bytes, shape);
  return new Tensor("float32", new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4), shape);
}

/** The float32 values of an output. */
export function floatOutput(tensor: Tensor | undefined, name: string): Float32Array {
  if (!(tensor?.data instanceof Float32Array)) throw new ModelError(`the graph gives no float32 ${name}`);
  return tensor.data;
}
