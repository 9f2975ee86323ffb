/** A bundle directory: its manifest, and the drafter in it, checked against its digests. It knows no runtime. */

import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import type { LoraAdapter } from "./adapter.js";
import { loadAdapter } from "./adapter-file.js";
import { ModelError } from "../errors.js";
import { asList, asObject, countOf, numberOf, parsedObject, textOf, type JsonObject } from "../format/json.js";
import { LoraLayout } from "./layout.js";
import { readSafetensors, type Stored } from "../format/safetensors.js";
import { readShape } from "./shape.js";

const MANIFEST = "bundle.json";
const SCHEMA = 4;
/** The longest context of a drafter, whatever its model can hold. */
const LONGEST_CONTEXT = 512;

export class Bundle {
  private constructor(
    readonly directory: string,
    /** Of the adapters that fit. */
    readonly layout: LoraLayout,
    /** Fingerprint of the drafter's frozen weights and tokenizer. */
    readonly base: string,
    /** Names of the targets' vocabularies. */
    readonly families: readonly string[],
    private readonly digests: JsonObject,
  ) {}

  /** Reads the manifest; files are checked when they are read. */
  static open(directory: string): Bundle {
    const path = join(directory, MANIFEST);
    if (!existsSync(path)) throw new ModelError(`${directory} is not a bundle: no ${MANIFEST} in it`);
    const manifest = parsedObject(readFileSync(path, "utf8"), path);
    const schema = numberOf(manifest, "schema", path);
    if (schema !== SCHEMA) throw new ModelError(`${path}: schema is ${schema}, this version reads ${SCHEMA}`);
    const shape = readShape(asObject(manifest["shape"], `${path}: shape`), path);
    const layout = new LoraLayout(countOf(manifest, "rank", path), numberOf(manifest, "alpha", path), shape);
    const targets = asList(manifest["targets"], `${path}: targets`);
    const families = targets.map((target) => textOf(asObject(target, path), "family", path));
    const digests = asObject(manifest["files"], `${path}: files`);
    return new Bundle(directory, layout, textOf(manifest, "base", path), families, digests);
  }

  get contextLimit(): number {
    return Math.min(this.layout.shape.context_limit, LONGEST_CONTEXT);
  }

  get decodeGraph(): Uint8Array {
    return this.read("drafter/decode.onnx");
  }

  get trainGraph(): Uint8Array {
    return this.read("drafter/train.onnx");
  }

  /** The drafter's weights as they are stored. */
  get weights(): ReadonlyMap<string, Stored> {
    const name = "drafter/model.safetensors";
    return readSafetensors(this.read(name), join(this.directory, name));
  }

  /** The adapter in a directory or file, by default the one that changes nothing. */
  adapter(path = join(this.directory, "drafter", "initial")): LoraAdapter {
    return loadAdapter(path, this.layout, this.base);
  }

  /** A file's content, which must match its digest in the manifest. */
  private read(name: string): Uint8Array {
    const path = join(this.directory, name);
    if (!existsSync(path)) throw new ModelError(`${this.directory} is incomplete: ${name} is missing`);
    const content = readFileSync(path);
    const expected = textOf(this.digests, name, `${MANIFEST}: files`);
    if (createHash("sha256").update(content).digest("hex") !== expected) {
      throw new ModelError(`${path} does not match its digest ${expected.slice(0, 12)}…; the file is damaged`);
    }
    return content;
  }
}
