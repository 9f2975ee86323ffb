/**
 * What a device in a fleet keeps over a restart, in a directory of its own: the promoted release, a release that is
 * being fetched, and an update that is not answered yet. Every file is whole or absent.
 *
 *     phone.json              which release is in force, and the head of the update that waits
 *     update.content          the update that waits
 *     releases/DIGEST.safetensors, DIGEST.part
 */

import { appendFileSync, existsSync, mkdirSync, readFileSync, readdirSync, truncateSync } from "node:fs";
import { join } from "node:path";

import type { UploadHead } from "../../generated/fleetdraft/fleet/v1/UploadHead.js";
import { ModelError, UserError } from "../errors.js";
import { asObject, countOf, numberOf, parsedObject, textOf, type JsonObject } from "../format/json.js";
import { remove, writeWhole } from "../format/whole-file.js";
import { LoraAdapter } from "../model/adapter.js";
import { sha256 } from "../model/content.js";
import type { LoraLayout } from "../model/layout.js";

const SCHEMA = 1;
const DIGEST = /^[0-9a-f]{64}$/u;

/** An update that no answer has come for. */
export interface Pending {
  readonly head: Required<Pick<UploadHead, "taskId" | "contentSha256" | "base" | "layout" | "release">> & {
    readonly contentBytes: number;
    readonly weight: number;
    readonly training: { readonly steps: number; readonly positions: number; readonly loss: number };
  };
  /** Seconds since 1970 after which nobody waits for it. */
  readonly until: number;
  readonly content: Uint8Array;
}

export class Store {
  private inForce = "";
  private waiting: Pending | undefined;

  private constructor(private readonly directory: string) {}

  /** Opens a store, made if it is not there. */
  static open(directory: string): Store {
    mkdirSync(join(directory, "releases"), { recursive: true, mode: 0o700 });
    const store = new Store(directory);
    const path = join(directory, "phone.json");
    if (existsSync(path)) store.read(parsedObject(readFileSync(path, "utf8"), path), path);
    return store;
  }

  /** Digest of the release in force; empty if there is none. */
  get release(): string {
    return this.inForce;
  }

  set release(digest: string) {
    this.inForce = checked(digest);
    this.save();
  }

  get pending(): Pending | undefined {
    return this.waiting;
  }

  /** Keeps an update until it is answered; undefined forgets it. */
  set pending(pending: Pending | undefined) {
    const path = join(this.directory, "update.content");
    if (pending !== undefined) writeWhole(path, pending.content); // before the head, which says that it is there
    this.waiting = pending;
    this.save();
    if (pending === undefined) remove(path);
  }

  /** A release that was kept, or undefined; a damaged one counts as absent. */
  adapter(digest: string, layout: LoraLayout): LoraAdapter | undefined {
    const path = this.path(digest, "safetensors");
    if (!existsSync(path)) return undefined;
    try {
      const adapter = LoraAdapter.read(readFileSync(path), layout, path);
      return adapter.digest === digest ? adapter : undefined;
    } catch (error) {
      if (error instanceof UserError) return undefined;
      throw error;
    }
  }

  /** Keeps a whole release, and what was fetched of it no more. */
  keep(adapter: LoraAdapter): void {
    const digest = adapter.digest;
    writeWhole(this.path(digest, "safetensors"), adapter.toBytes());
    remove(this.path(digest, "part"));
  }

  /** What was fetched of a release so far. */
  part(digest: string): Uint8Array {
    const path = this.path(digest, "part");
    return existsSync(path) ? readFileSync(path) : new Uint8Array();
  }

  /** Goes on with a release that is being fetched. */
  append(digest: string, data: Uint8Array): void {
    appendFileSync(this.path(digest, "part"), data, { mode: 0o600 });
  }

  /** Begins a release anew. */
  restart(digest: string): void {
    if (existsSync(this.path(digest, "part"))) truncateSync(this.path(digest, "part"));
  }

  /** Forgets all releases but these. */
  keepOnly(digests: readonly string[]): void {
    const folder = join(this.directory, "releases");
    for (const name of readdirSync(folder)) {
      if (!digests.includes(name.split(".")[0] ?? "")) remove(join(folder, name));
    }
  }

  private path(digest: string, kind: string): string {
    return join(this.directory, "releases", `${checked(digest)}.${kind}`);
  }

  private save(): void {
    const pending = this.waiting && { head: this.waiting.head, until: this.waiting.until };
    const value = { schema: SCHEMA, release: this.inForce, pending: pending ?? null };
    writeWhole(join(this.directory, "phone.json"), JSON.stringify(value));
  }

  private read(value: JsonObject, path: string): void {
    const schema = numberOf(value, "schema", path);
    if (schema !== SCHEMA) throw new ModelError(`${path}: schema is ${schema}, this version reads ${SCHEMA}`);
    this.inForce = textOf(value, "release", path);
    if (value["pending"] === null) return;
    const content = join(this.directory, "update.content");
    const pending = asObject(value["pending"], `${path}: pending`);
    const head = readHead(asObject(pending["head"], `${path}: head`), path);
    if (!existsSync(content)) return; // it was answered, and a kill came before this was noted
    const found = { head, until: numberOf(pending, "until", path), content: readFileSync(content) };
    if (sha256(found.content) === head.contentSha256) this.waiting = found;
  }
}

function readHead(value: JsonObject, path: string): Pending["head"] {
  const training = asObject(value["training"], `${path}: training`);
  return {
    taskId: textOf(value, "taskId", path),
    contentSha256: textOf(value, "contentSha256", path),
    contentBytes: countOf(value, "contentBytes", path),
    base: textOf(value, "base", path),
    layout: textOf(value, "layout", path),
    release: textOf(value, "release", path),
    weight: numberOf(value, "weight", path),
    training: {
      steps: countOf(training, "steps", path),
      positions: countOf(training, "positions", path),
      loss: numberOf(training, "loss", path),
    },
  };
}

/** A digest becomes part of a file's name, so it must be one. */
function checked(digest: string): string {
  if (!DIGEST.test(digest))
    throw new ModelError(`digest is ${JSON.stringify(digest.slice(0, 80))}, expected 64 hexadecimal digits`);
  return digest;
}
