/** Clipping, AdamW, training: numbers that a person can check. Python compares the rest (tests/client). */

import assert from "node:assert/strict";
import { test } from "node:test";

import { ADAMW, AdamW } from "../src/learning/adamw.js";
import { clipped, l2Norm } from "../src/learning/clipping.js";
import { TRAINING, only, train } from "../src/learning/training.js";
import { updateOf } from "../src/learning/update.js";
import { LoraAdapter } from "../src/model/adapter.js";
import { contentBytes, fromContent, toContent } from "../src/model/content.js";
import { fusedAdapter } from "../src/model/fused-adapter.js";
import { Decoder, argmax, greedy } from "../src/runtime/decoder.js";
import { TrainStep } from "../src/runtime/train-step.js";
import { held, mapped, type Floats } from "../src/format/tensor.js";
import { embedded, lesson, moved } from "./embedded.js";

const THREE_FOUR: Floats = new Map([
  ["x.A", { shape: [1], data: Float32Array.of(3) }],
  ["x.B", { shape: [1], data: Float32Array.of(4) }],
]);

test("the norm is over all tensors, and the bound scales them as a whole", () => {
  assert.equal(l2Norm(THREE_FOUR), 5);
  assert.deepEqual(
    [...clipped(THREE_FOUR, 1).values()].map(({ data }) => data[0]),
    [3, 4].map((x) => Math.fround(x * Math.fround(0.2))),
  );
  for (const bound of [5, 50]) assert.deepEqual(clipped(THREE_FOUR, bound), THREE_FOUR);
});

test("AdamW's first step is the rate against the gradient's sign, whatever its size", () => {
  const bundle = embedded();
  const from = bundle.adapter();
  const gradient = mapped(from.arrays, (_, at) => (at % 2 ? 1e-3 : -1e-3));
  const name = "lora.0.q_proj.B";
  const change = held(new AdamW(ADAMW).update(from, gradient).minus(from), name).data.slice(0, 2);
  assert.ok(Math.abs(change[0]! - 3e-4) < 1e-8 && Math.abs(change[1]! + 3e-4) < 1e-8, `${change}`);
});

test("weight decay draws towards zero and leaves the rest of the step alone", () => {
  const bundle = embedded();
  const from = moved(bundle, 0.5);
  const gradient = mapped(from.arrays, () => 1e-3);
  const step = (weightDecay: number): Floats => new AdamW({ ...ADAMW, weightDecay }).update(from, gradient).minus(from);
  const [plain, decayed] = [held(step(0), "lora.0.q_proj.B").data[0]!, held(step(0.1), "lora.0.q_proj.B").data[0]!];
  assert.ok(Math.abs(decayed - plain + 3e-4 * 0.1 * 0.5) < 1e-7);
});

test("training lowers the loss of what it is taught", async () => {
  const bundle = embedded();
  const step = await TrainStep.open(bundle);
  const lessons = [lesson(100), lesson(900, 20)];
  const { losses, used } = await train(step, bundle.adapter(), lessons, { ...TRAINING, steps: 12 });
  await step.close();
  assert.ok(losses.at(-1)! < losses[0]! - 0.1, `${losses}`);
  assert.deepEqual(used, lessons);
});

test("a factor that is frozen keeps its bits", async () => {
  const bundle = embedded();
  const step = await TrainStep.open(bundle);
  const from = moved(bundle, 0.01);
  const trained = await train(step, from, [lesson(5)], { ...TRAINING, factors: ["B"] });
  await step.close();
  assert.deepEqual(only(trained.adapter.arrays, ["A"]), only(from.arrays, ["A"]));
  const update = updateOf(from, trained, ["B"], 1e-3);
  assert.deepEqual(
    [...update.delta.keys()],
    [...from.arrays.keys()].filter((name) => name.endsWith(".B")),
  );
  assert.ok(Math.abs(l2Norm(update.delta) - 1e-3) < 1e-9);
  assert.equal(update.weight, 12);
});

test("no lessons is told", async () => {
  const bundle = embedded();
  const step = await TrainStep.open(bundle);
  await assert.rejects(train(step, bundle.adapter(), [], TRAINING), /no lessons, expected at least one/u);
  await step.close();
});

test("content is 4 bytes an entry in the layout's order, and comes back", () => {
  const bundle = embedded();
  const { arrays, layout } = moved(bundle, 0.25);
  const content = toContent(arrays, layout);
  assert.equal(content.byteLength, contentBytes(layout));
  assert.deepEqual(fromContent(content, layout), arrays);
  const first = held(arrays, "lora.0.q_proj.A").data;
  assert.deepEqual(new Float32Array(new Uint8Array(content).buffer, 0, first.length), first);
  assert.equal(toContent(arrays, layout, ["B"]).byteLength, contentBytes(layout, ["B"]));
});

test("the decode graph is given As one below the other, and Bs on a diagonal times alpha / rank", () => {
  const { arrays, layout } = moved(embedded(), 0.5);
  const fused = fusedAdapter(new LoraAdapter(layout, arrays));
  const [a, b] = [held(fused, "lora.1.gate_up_proj.A"), held(fused, "lora.1.gate_up_proj.B")];
  assert.deepEqual(
    [a.shape, b.shape],
    [
      [32, 128],
      [768, 32],
    ],
  );
  assert.deepEqual(a.data.subarray(16 * 128), held(arrays, "lora.1.up_proj.A").data);
  const row = (i: number): number[] => [...b.data.subarray(i * 32, (i + 1) * 32)];
  assert.deepEqual(row(383), [...Array<number>(16).fill(1), ...Array<number>(16).fill(0)]);
  assert.deepEqual(row(384), [...Array<number>(16).fill(0), ...Array<number>(16).fill(1)]);
});

test("a context that was rewound gives the bits of a fresh one, and an adapter begins it anew", async () => {
  const bundle = embedded();
  const decoder = await Decoder.open(bundle);
  const fresh = await decoder.score([1, 5, 9], 1);
  await decoder.score([77, 78]);
  decoder.rewind(1);
  assert.deepEqual(await decoder.score([5, 9], 1), fresh);
  decoder.adapt(moved(bundle, 0.05));
  assert.equal(decoder.length, 0);
  assert.notDeepEqual(await decoder.score([1, 5, 9], 1), fresh);
  await decoder.close();
});

test("a context holds its limit and no more", async () => {
  const bundle = embedded();
  const decoder = await Decoder.open(bundle);
  await decoder.score(Array<number>(511).fill(7), 1);
  assert.equal((await greedy(decoder, [8], 1)).length, 1);
  await assert.rejects(decoder.score([8]), /513 tokens, the drafter's context holds 512/u);
  await decoder.close();
});

test("of equal logits the first is taken", () => {
  assert.equal(argmax(Float32Array.of(1, 3, 3, 2)), 1);
});
