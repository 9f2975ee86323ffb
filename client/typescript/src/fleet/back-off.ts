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
}

export const BACK_OFF: BackOff = { tries: 6, firstS: 1 };

/** No wait is longer than this and half of it, however long a gateway is away. */
const LONGEST_S = 3600;

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

/** Seconds before the next try after `attempt` of them: half to one and a half of first · 2^(attempt − 1), or an hour. */
export function waitS(attempt: number, { firstS }: BackOff, chance: number): number {
  return Math.min(LONGEST_S, firstS * 2 ** (attempt - 1)) * (0.5 + chance);
}
