/** The same phone over gRPC, to a server made of the same .proto on this machine. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type AddressInfo } from "node:net";
import { after, before, test } from "node:test";

import * as grpc from "@grpc/grpc-js";

import type { FleetHandlers } from "../generated/fleetdraft/fleet/v1/Fleet.js";
import type { UploadChunk__Output } from "../generated/fleetdraft/fleet/v1/UploadChunk.js";
import { UserError } from "../src/errors.js";
import { BACK_OFF } from "../src/fleet/back-off.js";
import { Refusal, type Gateway, type UploadChunk } from "../src/fleet/gateway.js";
import { GrpcGateway, fleetPackage } from "../src/fleet/grpc-gateway.js";
import { Phone } from "../src/fleet/phone.js";
import { Store } from "../src/fleet/store.js";
import { TRAINING } from "../src/learning/training.js";
import { embedded, lesson, moved, scratchFolder } from "./embedded.js";
import { TableGateway } from "./table-gateway.js";

const BUNDLE = embedded();
const TOKEN = "a token";

let table = new TableGateway(moved(BUNDLE, 0.01), BUNDLE.base);
const HANDLERS: FleetHandlers = {
  CheckIn: (call, done) => void answer(call, done, () => table.checkIn(call.request)),
  UploadState: (call, done) => {
    void answer(call, done, () => table.uploadState(call.request.taskId, call.request.contentSha256));
  },
  Report: (call, done) => void answer(call, done, () => table.report(call.request)),
  FetchRelease: (call) => void stream(call, table.fetchRelease(call.request.digest, call.request.offset)),
  Upload: (call, done) => {
    if (atOnce) void call.once("data", () => done(null, { outcome: "LATE", reason: "" }));
    else void collected(call).then((chunks) => answer(call, done, () => table.upload(chunks)));
  },
};
/** Whether an upload is answered by its head. */
let atOnce = false;

const server = new grpc.Server();
let client: GrpcGateway;

before(async () => {
  server.addService(fleetPackage().Fleet.service, { ...HANDLERS });
  const port = await new Promise<number>((resolve, reject) => {
    const bound = (error: Error | null, port: number): void => (error ? reject(error) : resolve(port));
    server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), bound);
  });
  client = new GrpcGateway({ gateway: `127.0.0.1:${port}`, token: TOKEN, plaintext: true });
});

after(() => {
  client.close();
  server.forceShutdown();
});

test("a task over gRPC: fetched, trained, cut, sent, counted once", async () => {
  table = new TableGateway(table.release, BUNDLE.base);
  table.tasks = [table.task({ factors: ["A", "B"], clipNorm: 0.02 })];
  table.promoted = table.head;
  table.cuts = [200_000, Infinity, 262_144];
  assert.equal((await phone(client).turn()).kind, "answered");
  assert.deepEqual(table.fetches, [0, 200_000]);
  assert.deepEqual(table.uploads, [0, 262_144]);
  const [update] = table.counted;
  assert.equal(update!.content.byteLength, table.content.byteLength);
  assert.equal(update!.head.weight, 12);
  assert.equal(update!.head.training?.steps, 1);
});

test("an upload that is answered before all is sent is answered", async () => {
  table = new TableGateway(table.release, BUNDLE.base);
  table.tasks = [table.task()];
  atOnce = true;
  const turn = await phone(client).turn();
  atOnce = false;
  assert.deepEqual(turn, { kind: "answered", taskId: "task-1", outcome: "LATE", reason: "" });
});

test("a token in plain text goes through no proxy", async () => {
  const proxy = createServer((socket) => socket.destroy()).listen(0, "127.0.0.1");
  await once(proxy, "listening");
  let connections = 0;
  proxy.on("connection", () => (connections += 1));
  process.env["grpc_proxy"] = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const { gateway } = client["address"];
  const beside = new GrpcGateway({ gateway, token: TOKEN, plaintext: true });
  table = new TableGateway(table.release, BUNDLE.base);
  try {
    await phone(beside).turn();
    assert.deepEqual([connections, table.checkIns.length], [0, 1]);
  } finally {
    delete process.env["grpc_proxy"];
    beside.close();
    proxy.close();
  }
});

test("a wrong token is told as such", async () => {
  const port = client["address"].gateway;
  const stranger = new GrpcGateway({ gateway: port, token: "another", plaintext: true });
  await assert.rejects(phone(stranger).turn(), /the gateway refused: UNAUTHENTICATED: no such token/u);
  stranger.close();
});

test("no gateway is UNAVAILABLE, which is tried again", async () => {
  const nobody = new GrpcGateway({ gateway: "127.0.0.1:1", token: TOKEN, plaintext: true });
  const refused = nobody.uploadState("t", "s").catch((error: unknown) => error);
  const error = await refused;
  assert.ok(error instanceof Refusal && error.code === "UNAVAILABLE" && error.remedy === "again");
  nobody.close();
});

for (const gateway of ["example.org:443", "10.0.0.1:443", "127.0.0.1.example.org:443", "localhost.example.org:1"]) {
  test(`a token does not go to ${gateway} in plain text`, () => {
    assert.throws(() => new GrpcGateway({ gateway, token: TOKEN, plaintext: true }), UserError);
  });
}

test("certificates that are not there are told", () => {
  const address = { gateway: "example.org:443", token: TOKEN, plaintext: false, ca: "/nowhere/ca.pem" };
  assert.throws(() => new GrpcGateway(address), /no certificates at \/nowhere\/ca\.pem/u);
});

function phone(gateway: Gateway): Phone {
  const surroundings = { sleep: () => Promise.resolve(), now: () => 0, random: () => 0 };
  const parts = {
    bundle: BUNDLE,
    store: Store.open(scratchFolder()),
    gateway,
    lessons: () => [lesson(50)],
    surroundings,
  };
  return new Phone(parts, { appVersion: "t", family: "spm-3072", training: TRAINING, backOff: BACK_OFF });
}

// --- the server ------------------------------------------------------------------------------------------------------

async function answer<Reply>(
  call: { readonly metadata: grpc.Metadata },
  done: (error: Partial<grpc.StatusObject> | null, reply?: Reply) => void,
  reply: () => Promise<Reply>,
): Promise<void> {
  if (call.metadata.get("authorization")[0] !== `Bearer ${TOKEN}`) {
    return done({ code: grpc.status.UNAUTHENTICATED, details: "no such token" });
  }
  try {
    done(null, await reply());
  } catch (error) {
    done(statusOf(error));
  }
}

async function stream<Chunk>(
  call: grpc.ServerWritableStream<unknown, Chunk>,
  chunks: AsyncIterable<Chunk>,
): Promise<void> {
  try {
    for await (const chunk of chunks) if (!call.write(chunk)) await once(call, "drain");
    call.end();
  } catch (error) {
    call.emit("error", statusOf(error));
  }
}

async function collected(call: AsyncIterable<UploadChunk__Output>): Promise<UploadChunk[]> {
  const chunks: UploadChunk[] = [];
  for await (const chunk of call) chunks.push(chunk);
  return chunks;
}

function statusOf(error: unknown): Partial<grpc.StatusObject> {
  const code = error instanceof Refusal ? grpc.status[error.code as keyof typeof grpc.status] : grpc.status.INTERNAL;
  return { code, details: String(error) };
}
