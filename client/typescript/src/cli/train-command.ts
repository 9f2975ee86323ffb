/** `fleetdraft-phone train`: an adapter trained on lessons, and the clipped change. */

import { l2Norm } from "../learning/clipping.js";
import { readLessons } from "../learning/lesson-folder.js";
import { OBJECTIVE, divergenceOf } from "../learning/objective.js";
import { TRAINING, train as trained, type TrainingConfig } from "../learning/training.js";
import { updateOf } from "../learning/update.js";
import { Bundle } from "../model/bundle.js";
import { writeFloats } from "../format/safetensors.js";
import { writeWhole } from "../format/whole-file.js";
import { TrainStep } from "../runtime/train-step.js";
import { UserError } from "../errors.js";
import { count, number, parsed, required, text, texts, type Given } from "./options.js";

export const TRAINING_OPTIONS = {
  steps: { type: "string" },
  "batch-size": { type: "string" },
  divergence: { type: "string" },
} as const;

const OPTIONS = {
  ...TRAINING_OPTIONS,
  bundle: { type: "string" },
  lessons: { type: "string", multiple: true },
  out: { type: "string" },
  adapter: { type: "string" },
  "adapter-out": { type: "string" },
  gradient: { type: "string" },
  factor: { type: "string", multiple: true },
  "clip-norm": { type: "string" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

const HELP = `Trains the adapter on lessons, and writes the clipped change.

  fleetdraft-phone train --bundle DIR --lessons PATH… --out FILE [options]

  --bundle DIR        a bundle directory
  --lessons PATH      a lesson, or a folder of them; may be given again
  --out FILE          where the change goes, a safetensors file
  --adapter PATH      what to start from; by default the adapter that changes nothing
  --adapter-out FILE  where the trained adapter goes
  --gradient FILE     where the gradient of the first batch goes, as the graph gave it
  --steps N           training steps; by default one pass over the lessons
  --batch-size N      lessons of a step (8)
  --divergence NAME   forward-kl, reverse-kl, jsd, tvd, tvd++ or lk (forward-kl)
  --factor F          a LoRA factor that may change, A or B; may be given again (both)
  --clip-norm X       bound on the change as a whole (10)
  --json              print JSON

Example:
  npx fleetdraft-phone train --bundle ../embedded --lessons lessons/ --steps 4 --out update.safetensors
`;

export async function train(words: readonly string[], print: (line: string) => void): Promise<void> {
  const given = parsed(words, OPTIONS);
  if (given["help"]) return print(HELP);
  const bundle = Bundle.open(required(given, "bundle"));
  const out = required(given, "out");
  const lessons = readLessons(texts(given, "lessons"));
  const config = trainingConfig(given);
  const from = bundle.adapter(text(given, "adapter"));
  const step = await TrainStep.open(bundle);
  const gradient = text(given, "gradient");
  if (gradient !== undefined) {
    const batch = lessons.slice(0, config.batchSize);
    writeWhole(gradient, writeFloats((await step.gradient(from, batch, config.objective)).arrays));
  }
  const found = await trained(step, from, lessons, config);
  await step.close();
  const clipNorm = number(given, "clip-norm", Number.MIN_VALUE, Number.MAX_VALUE) ?? 10;
  const update = updateOf(from, found, config.factors, clipNorm);
  writeWhole(out, writeFloats(update.delta));
  const adapterOut = text(given, "adapter-out");
  if (adapterOut !== undefined) writeWhole(adapterOut, found.adapter.toBytes());
  const { losses, positions } = found;
  const told = { schema: 1, losses, positions, weight: update.weight, norm: l2Norm(update.delta), out };
  print(given["json"] ? JSON.stringify(told) : `${losses.length} steps, loss ${shown(losses)}, change in ${out}`);
}

/** What the options say of training; factors by default both. */
export function trainingConfig(given: Given): TrainingConfig {
  const steps = count(given, "steps", 1, 1e6);
  const factors = texts(given, "factor");
  const odd = factors.find((factor) => factor !== "A" && factor !== "B");
  if (odd !== undefined) throw new UserError(`--factor is ${odd}, expected A or B`);
  const divergence = divergenceOf(text(given, "divergence") ?? OBJECTIVE.divergence);
  return {
    ...TRAINING,
    ...(steps === undefined ? {} : { steps }),
    batchSize: count(given, "batch-size", 1, 1024) ?? TRAINING.batchSize,
    factors: factors.length ? factors : TRAINING.factors,
    objective: { ...OBJECTIVE, divergence },
  };
}

function shown(losses: readonly number[]): string {
  return `${losses[0]?.toFixed(4)} → ${losses.at(-1)?.toFixed(4)}`;
}
