/** Lessons as the train graph reads them: texts filled up to the longest, judged rows one behind the other. */

import type { Tensor } from "onnxruntime-node";

import { UserError } from "../errors.js";
import { judgedRows, type Lesson } from "../learning/lesson.js";
import { DIVERGENCES, type Objective } from "../learning/objective.js";
import { floatInput, int64Input } from "./session.js";

/** Inputs of the train graph but adapter and weights, for one client; a row is its text times L plus its place. */
export function batchInputs(lessons: readonly Lesson[], objective: Objective): Record<string, Tensor> {
  if (lessons.length === 0) throw new UserError("a batch of no lessons, expected at least one");
  const length = Math.max(...lessons.map((lesson) => lesson.tokens.length));
  const width = Math.max(1, ...lessons.map((lesson) => lesson.width));
  const found = lessons.flatMap((lesson, text) => judgedRows(lesson).map((row) => ({ lesson, text, row })));
  // Without a judged row the graph still reads one, of weight 0, as the Python device gives it.
  const rows = Math.max(1, found.length);
  const share = Math.fround(1 / rows);
  const likelihood = Math.fround(Math.fround(objective.ngramWeight) * share);

  const judged = (row: (lesson: Lesson, row: number) => number, fill = 0): number[] =>
    found.length ? found.map(({ lesson, row: at }) => row(lesson, at)) : [fill];
  const listed = (row: (lesson: Lesson, at: number) => number): number[] =>
    found.length
      ? found.flatMap(({ lesson, row: at }) => filled(lesson, at, width, row))
      : Array<number>(width).fill(0);

  return {
    tokens: int64Input(
      lessons.flatMap(({ tokens }) => [...tokens, ...Array<number>(length - tokens.length).fill(0)]),
      [1, lessons.length, length],
    ),
    rows: int64Input(found.length ? found.map(({ text, row }) => text * length + row) : [-1], [1, rows]),
    teacher_ids: int64Input(
      listed((lesson, at) => lesson.teacherIds[at]!),
      [1, rows, width],
    ),
    teacher_probs: real(
      listed((lesson, at) => lesson.teacherProbs[at]!),
      [1, rows, width],
    ),
    kl_weight: real(
      judged((lesson, row) => (lesson.taught[row] ? share : 0)),
      [1, rows],
    ),
    labels: int64Input(
      judged((lesson, row) => lesson.labels[row]!),
      [1, rows],
    ),
    nll_weight: real(
      judged((lesson, row) => (lesson.ngram[row] ? likelihood : 0)),
      [1, rows],
    ),
    uniforms: real(Array<number>(rows).fill(0), [1, rows, 1]),
    divergences: real(
      DIVERGENCES.map((name) => (name === objective.divergence ? 1 : 0)),
      [DIVERGENCES.length],
    ),
    beta: real([objective.beta], []),
    eta: real([objective.eta], []),
  };
}

/** A row of a listed field, filled up with zeros to `width`. */
function filled(lesson: Lesson, row: number, width: number, entry: (lesson: Lesson, at: number) => number): number[] {
  return Array.from({ length: width }, (_, i) => (i < lesson.width ? entry(lesson, row * lesson.width + i) : 0));
}

function real(values: readonly number[], shape: readonly number[]): Tensor {
  return floatInput({ shape, data: Float32Array.from(values) });
}
