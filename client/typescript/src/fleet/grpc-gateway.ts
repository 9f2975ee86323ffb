/** A gateway over gRPC, from the .proto that the build copied beside the code. It knows no task. */

import { X509Certificate } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import * as grpc from "@grpc/grpc-js";
import { loadSync, type Options } from "@grpc/proto-loader";

import type { ProtoGrpcType } from "../../generated/fleet.js";
import type { FleetClient } from "../../generated/fleetdraft/fleet/v1/Fleet.js";
import { UserError } from "../errors.js";
import { Refusal, type Gateway, type UploadChunk, type UploadReply } from "./gateway.js";

/** Must be those that package.json's `generate` gives. */
const READING: Options = { longs: Number, enums: String, defaults: true, oneofs: true };
/** What the gateway sends is a chunk and a little, or a head. */
const LARGEST_MESSAGE = 1 << 20;
const CALL_S = 30;
/** For a transfer as a whole; one that is cut goes on where it was. */
const TRANSFER_S = 300;

export interface Address {
  /** As host:port. */
  readonly gateway: string;
  readonly token: string;
  /** A file of certificates to trust instead of the system's. */
  readonly ca?: string;
  /** Without TLS; to this machine only. */
  readonly plaintext: boolean;
}

/** The service's definition, for clients and for servers of tests. */
export function fleetPackage(): ProtoGrpcType["fleetdraft"]["fleet"]["v1"] {
  const proto = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "fleet.proto");
  const loaded = grpc.loadPackageDefinition(loadSync(proto, READING)) as unknown as ProtoGrpcType;
  return loaded.fleetdraft.fleet.v1;
}

export class GrpcGateway implements Gateway {
  private readonly client: FleetClient;

  constructor(private readonly address: Address) {
    const options = {
      "grpc.max_receive_message_length": LARGEST_MESSAGE,
      "grpc.enable_retries": 0,
      "grpc.enable_http_proxy": address.plaintext ? 0 : 1, // a proxy is another machine
    };
    const { Fleet } = fleetPackage();
    this.client = new Fleet(address.gateway, credentials(address), options);
  }

  checkIn: Gateway["checkIn"] = (request) =>
    answered((done) => this.client.checkIn(request, this.metadata, within(CALL_S), done));

  uploadState: Gateway["uploadState"] = (taskId, contentSha256) =>
    answered((done) => this.client.uploadState({ taskId, contentSha256 }, this.metadata, within(CALL_S), done));

  report: Gateway["report"] = (request) =>
    answered((done) => this.client.report(request, this.metadata, within(CALL_S), done));

  fetchRelease: Gateway["fetchRelease"] = async function* (this: GrpcGateway, digest: string, offset: number) {
    const call = this.client.fetchRelease({ digest, offset }, this.metadata, within(TRANSFER_S));
    try {
      yield* call;
    } catch (error) {
      throw refusal(error);
    } finally {
      call.cancel();
    }
  };

  upload(chunks: Iterable<UploadChunk>): Promise<UploadReply> {
    return answered((done) => {
      const call = this.client.upload(this.metadata, within(TRANSFER_S), done);
      write(call, chunks[Symbol.iterator]());
    });
  }

  close(): void {
    this.client.close();
  }

  private get metadata(): grpc.Metadata {
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${this.address.token}`);
    return metadata;
  }
}

/** Writes as fast as they are taken. What is left when the call fails is never asked for. */
function write(call: grpc.ClientWritableStream<UploadChunk>, chunks: Iterator<UploadChunk>): void {
  for (let next = chunks.next(); ; next = chunks.next()) {
    if (next.done === true) return void call.end();
    if (!call.write(next.value)) return void call.once("drain", () => write(call, chunks));
  }
}

function answered<Reply>(
  call: (done: (error: grpc.ServiceError | null, reply?: Reply) => void) => void,
): Promise<Reply> {
  return new Promise((resolve, reject) => {
    call((error, reply) => {
      if (error !== null || reply === undefined) reject(refusal(error));
      else resolve(reply);
    });
  });
}

function refusal(error: unknown): unknown {
  if (typeof error !== "object" || error === null || !("code" in error) || typeof error.code !== "number") return error;
  const details = "details" in error ? String(error.details) : "";
  return new Refusal(grpc.status[error.code] ?? String(error.code), details.split("\n")[0] ?? "");
}

function within(seconds: number): grpc.CallOptions {
  return { deadline: Date.now() + seconds * 1000 };
}

function credentials({ gateway, ca, plaintext }: Address): grpc.ChannelCredentials {
  if (plaintext) {
    if (!isLoopback(gateway))
      throw new UserError(`--plaintext to ${gateway}, expected this machine; a token needs TLS`);
    return grpc.credentials.createInsecure();
  }
  if (ca === undefined) return grpc.credentials.createSsl();
  if (!existsSync(ca)) throw new UserError(`no certificates at ${ca}; give those of the fleet's operator with --ca`);
  const authority = readFileSync(ca);
  try {
    new X509Certificate(authority); // TLS would pass over what is none, and trust nobody
  } catch {
    throw new UserError(`${ca} holds no certificate, expected PEM, as the fleet's operator gives it`);
  }
  return grpc.credentials.createSsl(authority);
}

function isLoopback(address: string): boolean {
  const host = address.replace(/:\d+$/u, "");
  return ["localhost", "[::1]"].includes(host) || /^127(\.\d{1,3}){3}$/u.test(host) || address.startsWith("unix:");
}
