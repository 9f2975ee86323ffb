/** Formats: safetensors, half precision, protobuf, and the fingerprints that are taken over them. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { asFlags, asFloat32 } from "../src/format/floats.js";
import { fieldsOf } from "../src/format/protobuf.js";
import { readSafetensors, writeFloats, type Stored } from "../src/format/safetensors.js";
import { withFilePerWeight } from "../src/model/graph.js";
import { LoraLayout } from "../src/model/layout.js";
import { pythonFloat } from "../src/model/shape.js";
import { ModelError } from "../src/errors.js";
import { BUNDLE, embedded, moved } from "./embedded.js";

const TENSORS = new Map([
  ["bc", { shape: [2, 1], data: Float32Array.of(1, -2) }],
  ["a", { shape: [3], data: Float32Array.of(0, NaN, Infinity) }],
]);

test("what is written is read again", () => {
  const read = readSafetensors(writeFloats(TENSORS), "x");
  for (const [name, tensor] of TENSORS) assert.deepEqual(asFloat32(read.get(name) as Stored, name), tensor);
  assert.equal(read.size, 2);
});

test("a file is the reference's bytes: names in order, data at a multiple of 8", () => {
  const header =
    '{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"bc":{"dtype":"F32","shape":[2,1],"data_offsets":[12,20]}}';
  const written = Buffer.from(writeFloats(TENSORS));
  assert.equal(written.readBigUInt64LE(0), 120n);
  assert.equal(written.subarray(8, 128).toString(), header.padEnd(120));
  assert.equal(written.length, 148);
});

const TORN: readonly [string, (content: Buffer) => Buffer][] = [
  ["empty", () => Buffer.alloc(0)],
  ["cut", (content) => content.subarray(0, -1)],
  ["a header longer than the file", (content) => (content.writeBigUInt64LE(1n << 40n), content)],
  [
    "offsets that do not fit the shape",
    (content) => Buffer.from(content.toString("latin1").replace("[12,20]", "[12,19]"), "latin1"),
  ],
  ["an unknown type", (content) => Buffer.from(content.toString("latin1").replace('"F32"', '"Q32"'), "latin1")],
];

for (const [what, tear] of TORN) {
  test(`a file is refused in one line: ${what}`, () => {
    const content = tear(Buffer.from(writeFloats(TENSORS)));
    assert.throws(
      () => readSafetensors(content, "x.safetensors"),
      (error) => {
        return (
          error instanceof ModelError && error.message.startsWith("x.safetensors") && !error.message.includes("\n")
        );
      },
    );
  });
}

test("half precision is widened exactly", () => {
  const halves = Uint16Array.of(0x0000, 0x0001, 0x03ff, 0x0400, 0x3c00, 0xc000, 0x7bff, 0x7c00, 0xfc00);
  const expected = [0, 2 ** -24, 1023 * 2 ** -24, 2 ** -14, 1, -2, 65504, Infinity, -Infinity];
  const stored: Stored = { dtype: "F16", shape: [9], bytes: new Uint8Array(halves.buffer) };
  assert.deepEqual([...asFloat32(stored, "x").data], expected);
  const bfloat: Stored = { dtype: "BF16", shape: [2], bytes: new Uint8Array(Uint16Array.of(0x3f80, 0xc040).buffer) };
  assert.deepEqual([...asFloat32(bfloat, "x").data], [1, -3]);
});

test("integers are no floats and floats no flags", () => {
  const stored: Stored = { dtype: "I32", shape: [1], bytes: new Uint8Array(4) };
  assert.throws(() => asFloat32(stored, "x"), /x holds I32, expected floats/u);
  assert.throws(() => asFlags(stored, "x"), /x holds I32, expected BOOL/u);
});

test("numbers are written as Python writes them", () => {
  const written = [32, 10000, 1e-5, 1.5e-5, 0.0001, 1e15, 1e16, 1e22, 0.1, 1e-10].map(pythonFloat);
  const expected = [
    "32.0",
    "10000.0",
    "1e-05",
    "1.5e-05",
    "0.0001",
    "1000000000000000.0",
    "1e+16",
    "1e+22",
    "0.1",
    "1e-10",
  ];
  assert.deepEqual(written, expected);
});

test("fingerprint and digest are those that Python wrote beside the shipped adapter", () => {
  const adapter = embedded().adapter(); // the loader compares base, layout and digest
  const about = JSON.parse(readFileSync(join(BUNDLE, "drafter/initial/fleetdraft.json"), "utf8")) as Record<
    string,
    string
  >;
  assert.equal(adapter.layout.fingerprint, about["layout"]);
  assert.equal(adapter.digest, about["digest"]);
});

test("a digest changes with a bit, a layout's fingerprint with its alpha", () => {
  const bundle = embedded();
  assert.notEqual(moved(bundle, 1e-30).digest, bundle.adapter().digest);
  const { rank, alpha, shape } = bundle.layout;
  assert.notEqual(new LoraLayout(rank, alpha + 1, shape).fingerprint, bundle.layout.fingerprint);
});

test("a graph is changed in nothing but where its weights are", () => {
  const graph = embedded().decodeGraph;
  const changed = withFilePerWeight(graph);
  assert.deepEqual(withFilePerWeight(changed), changed);
  assert.equal([...fieldsOf(changed)].length, [...fieldsOf(graph)].length);
  const text = Buffer.from(changed).toString("latin1");
  assert.equal(text.match(/location\x12\x07weights/gu), null);
  assert.equal(text.match(/location\x12.model\./gu)?.length, 14);
});

test("a torn graph is refused", () => {
  const graph = embedded().decodeGraph;
  assert.throws(() => withFilePerWeight(graph.subarray(0, graph.byteLength - 3)), /is torn/u);
});
