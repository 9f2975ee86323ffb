/** A device's answer to a training task, ready to be sent: the clipped change, its weight, sums. No text, no tokens. */

import { createHash } from "node:crypto";

import type { LoraAdapter } from "../model/adapter.js";
import { clipped } from "./clipping.js";
import { taughtRows } from "./lesson.js";
import { writeFloats } from "../format/safetensors.js";
import { only, type Trained } from "./training.js";

/** What goes before the content; `UploadHead` of fleet.proto, but for fields that are zero here. */
export interface UpdateHead {
  readonly taskId: string;
  readonly contentSha256: string;
  readonly contentBytes: number;
  readonly base: string;
  readonly layout: string;
  readonly release: string;
  readonly weight: number;
  readonly training: { readonly steps: number; readonly positions: number; readonly loss: number };
}

export interface Update {
  readonly head: UpdateHead;
  /** A safetensors file with the float32 change of each tensor that may change. */
  readonly content: Uint8Array;
}

export interface UpdateTerms {
  readonly taskId: string;
  readonly base: string;
  readonly factors: readonly string[];
  readonly clipNorm: number;
}

/** The update that takes `from` to what was trained, within the terms of its task. */
export function updateOf(from: LoraAdapter, trained: Trained, terms: UpdateTerms): Update {
  const content = writeFloats(clipped(only(trained.adapter.minus(from), terms.factors), terms.clipNorm));
  return {
    content,
    head: {
      taskId: terms.taskId,
      contentSha256: sha256(content),
      contentBytes: content.byteLength,
      base: terms.base,
      layout: from.layout.fingerprint,
      release: from.digest,
      weight: trained.used.reduce((sum, lesson) => sum + taughtRows(lesson), 0),
      training: { steps: trained.losses.length, positions: trained.positions, loss: trained.loss },
    },
  };
}

export function sha256(content: Uint8Array): string {
  return createHash("sha256").update(content).digest("hex");
}
