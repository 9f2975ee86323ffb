/** A phone in a fleet, against a gateway in memory: what it does, what it survives, what it refuses. */

import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { BACK_OFF, again, waitS, type Surroundings } from "../src/fleet/back-off.js";
import { Refusal, type Task } from "../src/fleet/gateway.js";
import { Phone } from "../src/fleet/phone.js";
import { Store } from "../src/fleet/store.js";
import { comeBackS } from "../src/fleet/terms.js";
import type { Lesson } from "../src/learning/lesson.js";
import { TRAINING, train } from "../src/learning/training.js";
import { updateOf } from "../src/learning/update.js";
import { toContent } from "../src/model/content.js";
import { TrainStep } from "../src/runtime/train-step.js";
import { embedded, lesson, moved, scratchFolder } from "./embedded.js";
import { TableGateway } from "./table-gateway.js";

const BUNDLE = embedded();
const RELEASE = moved(BUNDLE, 0.01);
const LESSONS = [lesson(100), lesson(200)];

class Clock implements Surroundings {
  readonly waits: number[] = [];
  time = 1000;
  sleep = async (seconds: number): Promise<void> => void this.waits.push(seconds);
  now = (): number => this.time;
  random = (): number => 0.5;
}

interface Home {
  readonly folder: string;
  gateway: TableGateway;
  readonly clock: Clock;
  readonly phone: () => Phone;
  lessons: readonly Lesson[];
}

/** A phone with a folder; `phone()` starts its process anew. */
function home(): Home {
  const found: Home = {
    folder: scratchFolder(),
    gateway: new TableGateway(RELEASE, BUNDLE.base),
    clock: new Clock(),
    lessons: LESSONS,
    phone: () => {
      const { gateway, clock: surroundings } = found;
      const parts = {
        bundle: BUNDLE,
        store: Store.open(found.folder),
        gateway,
        lessons: () => found.lessons,
        surroundings,
      };
      return new Phone(parts, { appVersion: "t", family: "spm-3072", training: TRAINING, backOff: BACK_OFF });
    },
  };
  return found;
}

test("a task is fetched, trained and sent: the content is the clipped change, and the head fits it", async () => {
  const { gateway, phone } = home();
  gateway.tasks = [gateway.task({ clipNorm: 0.02, factors: ["B"] })];
  assert.deepEqual(await phone().turn(), { kind: "answered", taskId: "task-1", outcome: "ACCEPTED", reason: "" });
  const [update] = gateway.counted;
  const step = await TrainStep.open(BUNDLE);
  const expected = updateOf(RELEASE, await train(step, RELEASE, LESSONS, { ...TRAINING, factors: ["B"] }), ["B"], 0.02);
  await step.close();
  assert.deepEqual(update!.content, toContent(expected.delta, BUNDLE.layout, ["B"]));
  assert.equal(update!.head.release, RELEASE.digest);
  assert.equal(update!.head.base, BUNDLE.base);
  assert.equal(update!.head.layout, BUNDLE.layout.fingerprint);
  assert.equal(update!.head.weight, 24);
  assert.equal(update!.head.training?.positions, 24);
});

test("without lessons it is not eligible, and comes back when it is told to", async () => {
  const found = home();
  found.lessons = [];
  found.gateway.tasks = [found.gateway.task()];
  assert.deepEqual(await found.phone().turn(), { kind: "come-back", afterS: 7, reason: "NO_ROUND" });
  assert.equal(found.gateway.checkIns[0]!.eligible, false);
});

test("a promoted release is put in force, once, and told at the next check-in over a restart", async () => {
  const { gateway, phone } = home();
  gateway.promoted = gateway.head;
  await phone().turn();
  await phone().turn();
  assert.deepEqual(
    gateway.checkIns.map(({ release }) => release),
    ["", RELEASE.digest],
  );
  assert.deepEqual(gateway.fetches, [0]);
});

test("a fetch that is cut goes on where it was, over a restart too", async () => {
  const { gateway, phone, clock } = home();
  gateway.promoted = gateway.head;
  gateway.cuts = [150_000];
  gateway.failures = ["", "", ...Array<string>(5).fill("UNAVAILABLE")];
  assert.equal((await phone().turn()).kind, "come-back");
  assert.equal(clock.waits.length, 5);
  await phone().turn();
  assert.deepEqual(gateway.fetches, [0, 150_000]);
  assert.equal(gateway.failures.length, 0);
});

test("a release that comes damaged is fetched anew, and never put in force", async () => {
  const { folder, gateway, phone } = home();
  gateway.promoted = gateway.head;
  gateway.spoil = (content) => (content.writeUInt8(content.readUInt8(9) ^ 1, 9), content);
  const turn = await phone().turn();
  assert.match(turn.reason, /the release came damaged/u);
  assert.equal(Store.open(folder).release, "");
  assert.equal(gateway.fetches.length, BACK_OFF.tries);
  gateway.spoil = (content) => content;
  await phone().turn();
  assert.equal(Store.open(folder).release, RELEASE.digest);
});

const FOREIGN: readonly [string, object, RegExp][] = [
  ["of another drafter", { base: "0".repeat(64) }, /has base 000000000000…, this bundle's is .*; update the bundle/u],
  ["of another layout", { layoutFingerprint: "0".repeat(64) }, /has layoutFingerprint 000000000000…/u],
  ["of another size", { contentBytes: 1e12 }, /has 1000000000000 bytes, its layout has \d+/u],
  [
    "with a path for a digest",
    { digest: "../../etc/passwd" },
    /digest is "..\/..\/etc\/passwd", expected 64 hexadecimal/u,
  ],
];

for (const [what, change, message] of FOREIGN) {
  test(`a task with a release ${what} is refused before a byte is fetched`, async () => {
    const { gateway, phone } = home();
    gateway.tasks = [gateway.task({ release: { ...gateway.head, ...change } })];
    await assert.rejects(phone().turn(), message);
    assert.deepEqual(gateway.fetches, []);
  });
}

test("a chunk that is not where the one before ended is refused", async () => {
  const { gateway, phone } = home();
  gateway.promoted = gateway.head;
  gateway.shift = 4;
  await assert.rejects(phone().turn(), /a chunk of release 3 is at 4, expected 0/u);
});

test("a release that is another adapter than its digest says is not put in force, and fetched anew", async () => {
  const { folder, gateway, phone } = home();
  gateway.promoted = { ...gateway.head, digest: "a".repeat(64) };
  for (const fetches of [[0], [0, 0]]) {
    await assert.rejects(phone().turn(), /release 3 has digest [0-9a-f]{64}, expected a{64}/u);
    assert.equal(Store.open(folder).release, "");
    assert.deepEqual(gateway.fetches, fetches);
  }
});

for (const [what, content] of [
  ["cut short", (whole: Buffer) => whole.subarray(0, whole.byteLength / 2)],
  ["emptied", () => Buffer.alloc(0)],
  ["overwritten", (whole: Buffer) => Buffer.alloc(whole.byteLength, 0xff)],
  ["changed in its last number", (whole: Buffer) => (whole.writeUInt8(9, whole.byteLength - 2), whole)],
] as const) {
  test(`a kept release that was ${what} is fetched anew, in force or at work`, async () => {
    const { folder, gateway, phone } = home();
    gateway.promoted = gateway.head;
    await phone().turn();
    const path = join(folder, "releases", `${RELEASE.digest}.safetensors`);
    writeFileSync(path, content(readFileSync(path)));
    assert.equal((await phone().turn()).kind, "come-back");
    assert.equal(Store.open(folder).adapter(RELEASE.digest, BUNDLE.layout)?.digest, RELEASE.digest);
    writeFileSync(path, content(readFileSync(path)));
    [gateway.promoted, gateway.tasks] = [null, [gateway.task()]];
    assert.equal((await phone().turn()).kind, "answered");
    assert.deepEqual(gateway.fetches, [0, 0, 0]);
  });
}

test("a gateway that is away for hours is asked ever more rarely, and served when it is back", async () => {
  const { gateway, phone } = home();
  gateway.tasks = [gateway.task()];
  gateway.failures = Array<string>(10 * BACK_OFF.tries).fill("UNAVAILABLE");
  const one = phone();
  const waits: number[] = [];
  for (let turn = await one.turn(); turn.kind === "come-back"; turn = await one.turn()) waits.push(turn.afterS);
  assert.deepEqual(waits, [32, 64, 128, 256, 512, 1024, 2048, 3600, 3600, 3600]);
  assert.equal(gateway.counted.length, 1);
  gateway.failures = Array<string>(BACK_OFF.tries).fill("INTERNAL");
  const turn = await one.turn();
  assert.deepEqual(turn, { kind: "come-back", afterS: 32, reason: "INTERNAL: as the test says" });
});

test("a task whose deadline is over is not worked at", async () => {
  for (const deadlineS of [0, -1, NaN]) {
    const { gateway, phone, folder } = home();
    gateway.tasks = [gateway.task({ deadlineS })];
    assert.deepEqual(await phone().turn(), { kind: "come-back", afterS: 1, reason: "task task-1 is over" });
    assert.deepEqual(gateway.fetches, []);
    assert.equal(Store.open(folder).pending, undefined);
  }
});

test("a gateway that sends more than it said is refused", async () => {
  const { gateway, phone } = home();
  gateway.promoted = gateway.head;
  gateway.spoil = (content) => Buffer.concat([content, Buffer.alloc(8)]);
  await assert.rejects(phone().turn(), /a chunk of release 3 is at/u);
});

test("an upload that is cut goes on where it was, and counts once", async () => {
  const { gateway, phone } = home();
  gateway.tasks = [gateway.task()];
  gateway.cuts = [Infinity, 262_144];
  assert.equal((await phone().turn()).kind, "answered");
  assert.deepEqual(gateway.uploads, [0, 262_144]);
  assert.equal(gateway.counted.length, 1);
  assert.equal(gateway.counted[0]!.head.contentBytes, gateway.counted[0]!.content.byteLength);
});

test("an upload whose answer was lost is asked for again with the head alone, and counts once", async () => {
  const { gateway, phone } = home();
  gateway.tasks = [gateway.task()];
  gateway.losses = [true];
  assert.equal((await phone().turn()).kind, "answered");
  assert.deepEqual(gateway.uploads, [0, gateway.content.byteLength]);
  assert.equal(gateway.counted.length, 1);
});

test("an update that waits is sent after a restart, without training again", async () => {
  const found = home();
  const { gateway, folder } = found;
  gateway.tasks = [gateway.task()];
  gateway.failures = ["", "", ...Array<string>(6).fill("UNAVAILABLE")];
  assert.match((await found.phone().turn()).reason, /UNAVAILABLE/u);
  assert.ok(existsSync(join(folder, "update.content")));
  found.lessons = []; // so that it could not train
  assert.equal((await found.phone().turn()).kind, "answered");
  assert.equal(gateway.checkIns.length, 1);
  assert.equal(Store.open(folder).pending, undefined);
  assert.equal(existsSync(join(folder, "update.content")), false);
});

test("an update that nobody waits for any more is forgotten", async () => {
  const { gateway, phone, clock, folder } = home();
  gateway.tasks = [gateway.task({ deadlineS: 60 })];
  gateway.failures = ["", "", ...Array<string>(6).fill("UNAVAILABLE")];
  assert.equal((await phone().turn()).kind, "come-back");
  clock.time += 61;
  gateway.tasks = [];
  assert.equal((await phone().turn()).kind, "come-back");
  assert.equal(Store.open(folder).pending, undefined);
});

test("a damaged update is forgotten and not sent", async () => {
  const { gateway, phone, folder } = home();
  gateway.tasks = [gateway.task()];
  gateway.failures = ["", "", ...Array<string>(6).fill("UNAVAILABLE")];
  assert.equal((await phone().turn()).kind, "come-back");
  const path = join(folder, "update.content");
  const content = readFileSync(path);
  writeFileSync(path, content.subarray(1));
  assert.equal(Store.open(folder).pending, undefined);
});

for (const outcome of ["REJECTED", "LATE"] as const) {
  test(`an update that was ${outcome.toLowerCase()} is not sent again`, async () => {
    const { gateway, phone, folder } = home();
    gateway.tasks = [gateway.task()];
    gateway.outcome = outcome;
    const turn = await phone().turn();
    assert.equal(turn.kind === "answered" && turn.outcome, outcome);
    assert.equal(Store.open(folder).pending, undefined);
  });
}

test("a task that is gone means to check in again", async () => {
  const { gateway, phone, folder } = home();
  gateway.tasks = [gateway.task()];
  gateway.failures = ["", "", "NOT_FOUND"];
  assert.deepEqual(await phone().turn(), { kind: "come-back", afterS: 1, reason: "NOT_FOUND: as the test says" });
  assert.equal(Store.open(folder).pending, undefined);
});

test("an evaluation is answered with sums of zero, for this device has no target", async () => {
  const { gateway, phone } = home();
  gateway.tasks = [gateway.task({ kind: "EVALUATE" })];
  assert.equal((await phone().turn()).kind, "answered");
  assert.deepEqual(gateway.reports, [{ taskId: "task-1", drafting: {} }]);
});

test("a token that is refused leaves the update for the next turn", async () => {
  const { gateway, phone, folder } = home();
  gateway.tasks = [gateway.task()];
  gateway.failures = ["", "", "UNAUTHENTICATED"];
  await assert.rejects(phone().turn(), /UNAUTHENTICATED/u);
  assert.ok(Store.open(folder).pending !== undefined);
  gateway.failures = ["INVALID_ARGUMENT"];
  await assert.rejects(phone().turn(), /INVALID_ARGUMENT/u);
  assert.equal(Store.open(folder).pending, undefined);
});

const UNKNOWN: readonly Partial<Task>[] = [
  { kind: "KIND_UNSPECIFIED" },
  { factors: ["A", "C"] },
  { factors: [] },
  { clipNorm: 0 },
  { clipNorm: NaN },
  { clipNorm: Infinity },
  { deadlineS: Infinity },
  { release: null },
];

for (const change of UNKNOWN) {
  test(`a task is refused that asks for ${Object.keys(change)[0]} = ${String(Object.values(change)[0])}`, async () => {
    const { gateway, phone } = home();
    gateway.tasks = [gateway.task(change)];
    await assert.rejects(phone().turn(), /which this version does not know; update the app/u);
    assert.deepEqual(gateway.fetches, []);
  });
}

test("no gateway can make a phone come back at once, or never", () => {
  assert.deepEqual(
    [0, -5, 7, 1e9, Infinity, NaN].map((afterS) => comeBackS(afterS, 1)),
    [1, 1, 7, 86400, 86400, 86400],
  );
});

test("of releases only those in force and at work are kept", async () => {
  const found = home();
  const kept = (): boolean[] => {
    const store = Store.open(found.folder);
    return [RELEASE, later.release].map(({ digest }) => store.adapter(digest, BUNDLE.layout) !== undefined);
  };
  const later = new TableGateway(moved(BUNDLE, 0.02), BUNDLE.base);
  found.gateway.tasks = [found.gateway.task()];
  await found.phone().turn();
  assert.deepEqual(kept(), [true, false]);
  found.gateway = later;
  later.tasks = [later.task({ id: "task-2" })];
  await found.phone().turn();
  assert.deepEqual(kept(), [false, true]);
});

for (const code of ["UNAUTHENTICATED", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "PERMISSION_DENIED"]) {
  test(`${code} is told and not tried again`, async () => {
    const { gateway, phone, clock } = home();
    gateway.failures = [code];
    await assert.rejects(phone().turn(), new RegExp(`the gateway refused: ${code}`, "u"));
    assert.deepEqual(clock.waits, []);
  });
}

test("waits double, each at random from half to one and a half of itself", async () => {
  const waits = (chance: number): number[] => [1, 2, 3, 4, 5].map((attempt) => waitS(attempt, BACK_OFF, chance));
  assert.deepEqual([12, 13, 2000].map((attempt) => waitS(attempt, BACK_OFF, 0.5)), [2048, 3600, 3600]);
  assert.deepEqual(waits(0), [0.5, 1, 2, 4, 8]);
  assert.deepEqual(waits(0.5), [1, 2, 4, 8, 16]);
  const clock = new Clock();
  const refused = again(() => Promise.reject(new Refusal("UNAVAILABLE", "")), BACK_OFF, clock);
  await assert.rejects(refused, Refusal);
  assert.deepEqual(clock.waits, [1, 2, 4, 8, 16]);
});
