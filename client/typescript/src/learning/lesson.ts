/**
 * What one generated text teaches the drafter: its context, with the target's judgement beside each row. It knows
 * neither text nor how the judgement came to be; the files are those that the Python device writes.
 */

import { ModelError, firstLine } from "../errors.js";
import { asFlags, asFloat32, asIntegers } from "../format/floats.js";
import { readSafetensors, type Stored } from "../format/safetensors.js";

/** One text of L drafter tokens; row i judges the token after the first i + 1. */
export interface Lesson {
  /** (L,) */
  readonly tokens: readonly number[];
  /** K: listed drafter tokens of a row. */
  readonly width: number;
  /** (L, K) */
  readonly teacherIds: readonly number[];
  /** (L, K); 0 is padding. */
  readonly teacherProbs: Float32Array;
  /** (L,) rows that the divergence is taken on. */
  readonly taught: readonly boolean[];
  /** (L,) */
  readonly labels: readonly number[];
  /** (L,) */
  readonly labelProbs: Float32Array;
  /** (L,) rows that the n-gram likelihood is taken on. */
  readonly ngram: readonly boolean[];
}

/** Reads a lesson's file. */
export function readLesson(content: Uint8Array, where: string): Lesson {
  const stored = readSafetensors(content, where);
  try {
    const lesson = parsed(stored);
    if (!isSound(lesson)) throw new ModelError("its arrays do not fit together");
    return lesson;
  } catch (error) {
    throw new ModelError(`${where} is not a lesson: ${firstLine(error)}`);
  }
}

/** Rows that teach something, in order. */
export function judgedRows(lesson: Lesson): number[] {
  return lesson.tokens.flatMap((_, row) => (lesson.taught[row] || lesson.ngram[row] ? [row] : []));
}

/** Tokens of the target that were judged: it judges each once. */
export function taughtRows(lesson: Lesson): number {
  return lesson.taught.filter(Boolean).length;
}

function parsed(stored: ReadonlyMap<string, Stored>): Lesson {
  const tensor = (name: string): Stored => {
    const found = stored.get(name);
    if (found === undefined) throw new ModelError(`no ${name}`);
    return found;
  };
  return {
    tokens: asIntegers(tensor("tokens"), "tokens"),
    width: tensor("teacher_ids").shape[1] ?? 0,
    teacherIds: asIntegers(tensor("teacher_ids"), "teacher_ids"),
    teacherProbs: asFloat32(tensor("teacher_probs"), "teacher_probs").data,
    taught: asFlags(tensor("taught"), "taught"),
    labels: asIntegers(tensor("labels"), "labels"),
    labelProbs: asFloat32(tensor("label_probs"), "label_probs").data,
    ngram: asFlags(tensor("ngram"), "ngram"),
  };
}

function isSound(lesson: Lesson): boolean {
  const rows = lesson.tokens.length;
  const { taught, labels, labelProbs, ngram, teacherIds, teacherProbs, width } = lesson;
  const narrow = [taught, labels, labelProbs, ngram].every((array) => array.length === rows);
  const wide = [teacherIds, teacherProbs].every((array) => array.length === rows * width);
  const ids = [...lesson.tokens, ...teacherIds, ...labels].every((id) => id >= 0);
  return narrow && wide && ids && [...teacherProbs, ...labelProbs].every((p) => p >= 0 && p <= 1);
}
