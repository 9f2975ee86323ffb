/** What a training step lowers: which divergence from the teacher, and how much of the n-gram likelihood. */

import { UserError } from "../errors.js";

/** In the order of the train graph's input `divergences`. */
export const DIVERGENCES = ["forward-kl", "reverse-kl", "jsd", "tvd", "tvd++", "tvd++sampled", "lk"] as const;
/** Its gradient depends on tokens drawn from Python's generator, so it could not be compared. */
const DRAWN = "tvd++sampled";

export type Divergence = (typeof DIVERGENCES)[number];

export interface Objective {
  readonly divergence: Divergence;
  readonly ngramWeight: number;
  /** Of the JSD. */
  readonly beta: number;
  /** Of LK. */
  readonly eta: number;
}

export const OBJECTIVE: Objective = { divergence: "forward-kl", ngramWeight: 0.2, beta: 0.5, eta: 3 };

/** The divergence of a name. */
export function divergenceOf(name: string): Divergence {
  const found = DIVERGENCES.find((known) => known === name && known !== DRAWN);
  if (found !== undefined) return found;
  const known = DIVERGENCES.filter((divergence) => divergence !== DRAWN).join(", ");
  throw new UserError(`--divergence is ${name}, expected one of ${known}`);
}
