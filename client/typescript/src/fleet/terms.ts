/** What a gateway asks for, checked: a device does what it knows and nothing else. */

import { UserError } from "../errors.js";
import { FACTORS } from "../model/content.js";
import type { ReleaseHead, Task } from "./gateway.js";

/** A task that this version can do. */
export interface Terms {
  readonly taskId: string;
  readonly kind: "TRAIN" | "EVALUATE";
  readonly release: ReleaseHead;
  readonly factors: readonly string[];
  readonly clipNorm: number;
  /** Seconds since 1970 after which nobody waits for the answer. */
  readonly until: number;
}

/** Nobody waits longer than this, whatever a gateway says; a timer would overflow in the end. */
const LONGEST_WAIT_S = 86400;

/** The terms of a task that was told at `now`, in seconds since 1970. */
export function termsOf(task: Task, now: number): Terms {
  const { id: taskId, kind, release, factors, clipNorm, deadlineS } = task;
  const known = factors.every((factor) => FACTORS.some((one) => one === factor));
  const trains = kind === "TRAIN" && known && factors.length > 0 && clipNorm > 0 && clipNorm < Infinity;
  if (release === null || (kind !== "EVALUATE" && !trains) || !Number.isFinite(deadlineS)) {
    const asked = `${kind} of ${factors.join(", ") || "nothing"} within ${clipNorm} in ${deadlineS} s`;
    throw new UserError(`task ${taskId} asks for ${asked}, which this version does not know; update the app`);
  }
  return { taskId, kind: trains ? "TRAIN" : "EVALUATE", release, factors, clipNorm, until: now + deadlineS };
}

/** Seconds to wait when `afterS` was told, at least `leastS`. */
export function comeBackS(afterS: number, leastS: number): number {
  return Math.min(LONGEST_WAIT_S, Math.max(leastS, Number.isNaN(afterS) ? LONGEST_WAIT_S : afterS));
}
