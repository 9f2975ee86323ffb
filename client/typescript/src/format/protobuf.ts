/** The protobuf wire format, as far as it takes to change a message and keep all that is not understood. No schema. */

import { ModelError } from "../errors.js";

const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

/** A field as it lies in a message: `raw` is all of it, `payload` what is behind its tag and length. */
export interface Field {
  readonly number: number;
  readonly payload: Uint8Array;
  readonly raw: Uint8Array;
}

/** The fields of a message, in order. */
export function* fieldsOf(message: Uint8Array): Generator<Field> {
  let at = 0;
  while (at < message.byteLength) {
    const tag = varint(message, at);
    const kind = tag.value % 8;
    const begin = kind === BYTES ? varint(message, tag.end).end : tag.end;
    const end = kind === BYTES ? begin + varint(message, tag.end).value : begin + plainLength(kind, message, begin);
    if (end > message.byteLength) throw new ModelError("a protobuf message is torn; fetch the file again");
    yield { number: Math.floor(tag.value / 8), payload: message.subarray(begin, end), raw: message.subarray(at, end) };
    at = end;
  }
}

/** A field of bytes, text or a message. */
export function bytesField(number: number, payload: Uint8Array): Uint8Array {
  return Buffer.concat([written(number * 8 + BYTES), written(payload.byteLength), payload]);
}

export function textOfField(field: Field): string {
  return Buffer.from(field.payload).toString("utf8");
}

function plainLength(kind: number, message: Uint8Array, at: number): number {
  switch (kind) {
    case VARINT:
      return varint(message, at).end - at;
    case FIXED64:
      return 8;
    case FIXED32:
      return 4;
    default:
      throw new ModelError(`a protobuf field is of kind ${kind}, expected 0, 1, 2 or 5; the file is damaged`);
  }
}

/** Numbers beyond 2^53 lose their low bits, which only matters for values, and those are never read. */
function varint(message: Uint8Array, at: number): { readonly value: number; readonly end: number } {
  let value = 0;
  for (let i = 0; i < 10 && at + i < message.byteLength; i++) {
    const byte = message[at + i]!;
    value += (byte & 0x7f) * 2 ** (7 * i);
    if (byte < 0x80) return { value, end: at + i + 1 };
  }
  throw new ModelError("a protobuf message is torn; fetch the file again");
}

function written(value: number): Uint8Array {
  const bytes: number[] = [];
  for (; value >= 0x80; value = Math.floor(value / 0x80)) bytes.push((value % 0x80) + 0x80);
  return Uint8Array.of(...bytes, value);
}
