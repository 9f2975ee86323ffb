/** Adapters on disk: a PEFT directory with our fingerprints beside it, or a file as releases are sent. */

import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

import { LoraAdapter } from "./adapter.js";
import { FingerprintError, ModelError } from "../errors.js";
import { parsedObject, textOf } from "../format/json.js";
import type { LoraLayout } from "./layout.js";
import { readSafetensors } from "../format/safetensors.js";
import { PROJECTIONS, type Projection } from "./shape.js";

const TENSORS = "adapter_model.safetensors";
const ABOUT = "fleetdraft.json";

/** Reads a directory or a file; a directory must be for `base` and `layout` and match its digest. */
export function loadAdapter(path: string, layout: LoraLayout, base: string): LoraAdapter {
  if (!existsSync(path)) throw new ModelError(`no adapter at ${path}`);
  if (!statSync(path).isDirectory()) return LoraAdapter.read(readFileSync(path), layout, path);
  const tensors = join(path, TENSORS);
  const about = join(path, ABOUT);
  for (const file of [tensors, about]) {
    if (!existsSync(file)) throw new ModelError(`${path} is no adapter directory of this project: no ${file}`);
  }
  const adapter = LoraAdapter.fromStored(readSafetensors(readFileSync(tensors), tensors), layout, tensors, peftName);
  const said = parsedObject(readFileSync(about, "utf8"), about);
  const expected = { base, layout: layout.fingerprint, digest: adapter.digest };
  for (const [key, value] of Object.entries(expected)) {
    const given = textOf(said, key, about);
    if (given !== value) {
      throw new FingerprintError(`${path}: ${key} is ${given.slice(0, 12)}…, expected ${value.slice(0, 12)}…`);
    }
  }
  return adapter;
}

/** PEFT's name of one of our tensors. */
export function peftName(name: string): string {
  const [, layer, projection, factor] = name.split(".");
  const owner = PROJECTIONS[projection as Projection];
  return `base_model.model.model.layers.${layer}.${owner}.${projection}.lora_${factor}.weight`;
}
