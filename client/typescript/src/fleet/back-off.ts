/** Tries again after ever longer waits, at random within each, so that devices do not come back together. */

import { Refusal, type Remedy } from "./gateway.js";

/** Time and chance, as arguments. */
export interface Surroundings {
  sleep(seconds: number): Promise<void>;
  /** Seconds since 1970. */
  now(): number;
  /** From 0 to less than 1. */
  random(): number;
}

export interface BackOff {
  readonly tries: number;
  readonly firstS: number;
  readonly longestS: number;
}

export const BACK_OFF: BackOff = { tries: 8, firstS: 1, longestS: 300 };

/** Calls until it succeeds, fails with another remedy than those given, or has been tried often enough. */
export async function again<Reply>(
  call: () => Promise<Reply>,
  backOff: BackOff,
  surroundings: Surroundings,
  remedies: readonly Remedy[] = ["again"],
): Promise<Reply> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      const mends = error instanceof Refusal && remedies.includes(error.remedy);
      if (!mends || attempt >= backOff.tries) throw error;
      await surroundings.sleep(waitS(attempt, backOff, surroundings.random()));
    }
  }
}

/** Seconds before the try after the `attempt`-th: between half and all of first · 2^(attempt − 1), at most `longestS`. */
export function waitS(attempt: number, { firstS, longestS }: BackOff, chance: number): number {
  return Math.min(longestS, firstS * 2 ** (attempt - 1)) * (0.5 + chance / 2);
}
