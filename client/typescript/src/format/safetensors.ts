/**
 * The safetensors format, read and written as the reference implementation does: the same tensors give the same bytes.
 * It knows no names.
 *
 * Source: huggingface/safetensors, `safetensors/src/tensor.rs`.
 */

import { ModelError } from "../errors.js";
import { asList, asObject, parsedObject, textOf } from "./json.js";
import { sizeOf, type Floats, type FloatTensor, bytesOf } from "./tensor.js";

const BYTES = { BOOL: 1, U8: 1, F16: 2, BF16: 2, I32: 4, F32: 4, F64: 8, I64: 8 } as const;
const LONGEST_HEADER = 100_000_000;

export type Dtype = keyof typeof BYTES;

/** A tensor as it lies in a file, little-endian, row-major. */
export interface Stored {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

/** Reads every tensor of a file's content; `where` names the file in messages. */
export function readSafetensors(content: Uint8Array, where: string): Map<string, Stored> {
  if (content.byteLength < 8) throw new ModelError(`${where} is no safetensors file: ${content.byteLength} bytes`);
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const length = Number(view.getBigUint64(0, true));
  if (length > Math.min(content.byteLength - 8, LONGEST_HEADER)) {
    throw new ModelError(`${where} is no safetensors file: its header would have ${length} bytes`);
  }
  const header = parsedObject(Buffer.from(content.subarray(8, 8 + length)).toString("utf8"), where);
  const body = content.subarray(8 + length);
  const tensors = new Map<string, Stored>();
  for (const [name, about] of Object.entries(header)) {
    if (name !== "__metadata__") tensors.set(name, readTensor(body, about, `${where}: ${name}`));
  }
  return tensors;
}

function readTensor(body: Uint8Array, about: unknown, where: string): Stored {
  const fields = asObject(about, where);
  const dtype = textOf(fields, "dtype", where);
  if (!isDtype(dtype))
    throw new ModelError(`${where} holds ${dtype}, expected one of ${Object.keys(BYTES).join(", ")}`);
  const shape = asList(fields["shape"], where).map(Number);
  const [begin = NaN, end = NaN] = asList(fields["data_offsets"], where).map(Number);
  const whole = [...shape, begin, end].every((n) => Number.isSafeInteger(n) && n >= 0);
  if (!whole || end > body.byteLength || end - begin !== sizeOf(shape) * BYTES[dtype]) {
    throw new ModelError(`${where} has shape [${shape.join(", ")}] and bytes ${begin} to ${end}, which do not agree`);
  }
  return { dtype, shape, bytes: body.subarray(begin, end) };
}

function isDtype(name: string): name is Dtype {
  return name in BYTES;
}

/** The content of a file of float32 tensors. */
export function writeFloats(tensors: Floats): Uint8Array {
  const names = [...tensors.keys()].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  const header: Record<string, unknown> = {};
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const name of names) {
    const tensor = tensors.get(name) as FloatTensor;
    const bytes = bytesOf(tensor);
    header[name] = { dtype: "F32", shape: tensor.shape, data_offsets: [at, at + bytes.byteLength] };
    at += bytes.byteLength;
    parts.push(bytes);
  }
  return Buffer.concat([prelude(JSON.stringify(header)), ...parts]);
}

/** The header's length and the header, filled up with spaces so that the data begins at a multiple of 8. */
function prelude(json: string): Uint8Array {
  const text = Buffer.from(json);
  const filled = Buffer.alloc(8 + Math.ceil(text.byteLength / 8) * 8, " ");
  filled.writeBigUInt64LE(BigInt(filled.byteLength - 8));
  text.copy(filled, 8);
  return filled;
}
