/**
 * Graphs without weights, made ready for weights from memory. It knows no runtime and no layer.
 *
 * A decode graph names its weights as external data of one file, `weights`. ONNX Runtime's C and Python interfaces bind
 * them by the name of the tensor; JavaScript can only stand in for files. So here each tensor gets a file of its own,
 * named as the tensor.
 *
 * Source: onnx.proto3: ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.name = 8, external_data = 13,
 * data_location = 14; StringStringEntryProto.key = 1, value = 2.
 */

import { bytesField, fieldsOf, textOfField } from "../format/protobuf.js";

const GRAPH = 7;
const INITIALIZER = 5;
const NAME = 8;
const EXTERNAL_DATA = 13;
const KEY = 1;
const VALUE = 2;

/** The graph with `location` of each external tensor changed to the tensor's name. */
export function withFilePerWeight(model: Uint8Array): Uint8Array {
  return rewritten(model, GRAPH, (graph) => rewritten(graph, INITIALIZER, withOwnFile));
}

function withOwnFile(tensor: Uint8Array): Uint8Array {
  const name = [...fieldsOf(tensor)].find((field) => field.number === NAME)?.payload ?? new Uint8Array();
  return rewritten(tensor, EXTERNAL_DATA, (entry) => {
    const isLocation = [...fieldsOf(entry)].some((field) => field.number === KEY && textOfField(field) === "location");
    return isLocation ? rewritten(entry, VALUE, () => name) : entry;
  });
}

/** A message with the payload of every field of a number changed; all else is copied as it is. */
function rewritten(message: Uint8Array, number: number, change: (payload: Uint8Array) => Uint8Array): Uint8Array {
  const parts = [...fieldsOf(message)].map((field) =>
    field.number === number ? bytesField(number, change(field.payload)) : field.raw,
  );
  return Buffer.concat(parts);
}
