/** The shipped bundle, adapters made from it, and lessons made of numbers. It knows no test. */

import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";

import type { Lesson } from "../src/learning/lesson.js";
import type { LoraAdapter } from "../src/model/adapter.js";
import { Bundle } from "../src/model/bundle.js";
import { mapped } from "../src/format/tensor.js";

export const BUNDLE = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..", "embedded");

export function embedded(): Bundle {
  return Bundle.open(BUNDLE);
}

/** The adapter that changes nothing, with `amount` added to every entry. */
export function moved(bundle: Bundle, amount: number): LoraAdapter {
  const initial = bundle.adapter();
  return initial.plus(mapped(initial.arrays, () => amount));
}

/** A text whose every row is taught one likely token. */
export function lesson(first: number, length = 12): Lesson {
  const tokens = Array.from({ length }, (_, i) => first + 7 * i);
  const width = 2;
  return {
    tokens,
    width,
    teacherIds: tokens.flatMap((token) => [token + 1, token + 2]),
    teacherProbs: Float32Array.from(tokens.flatMap(() => [0.7, 0.2])),
    taught: tokens.map(() => true),
    labels: tokens.map((token) => token + 1),
    labelProbs: new Float32Array(length),
    ngram: tokens.map((_, i) => i % 3 === 0),
  };
}

export function scratchFolder(): string {
  return mkdtempSync(join(tmpdir(), "fleetdraft-phone-"));
}
