/** `fleetdraft-phone join`: takes part in a fleet through its gateway, until it is interrupted. */

import { existsSync, readFileSync } from "node:fs";
import { setTimeout } from "node:timers/promises";

import { UserError } from "../errors.js";
import { BACK_OFF, type Surroundings } from "../fleet/back-off.js";
import { FolderLock } from "../fleet/folder-lock.js";
import { GrpcGateway } from "../fleet/grpc-gateway.js";
import { Phone, type Turn } from "../fleet/phone.js";
import { Store } from "../fleet/store.js";
import { readLessons } from "../learning/lesson-folder.js";
import { Bundle } from "../model/bundle.js";
import { count, number, parsed, required, text, texts, type Given } from "./options.js";
import { TRAINING_OPTIONS, trainingConfig } from "./train-command.js";

const OPTIONS = {
  ...TRAINING_OPTIONS,
  bundle: { type: "string" },
  gateway: { type: "string" },
  "token-file": { type: "string" },
  ca: { type: "string" },
  plaintext: { type: "boolean" },
  state: { type: "string" },
  lessons: { type: "string", multiple: true },
  family: { type: "string" },
  "app-version": { type: "string" },
  tasks: { type: "string" },
  "longest-wait": { type: "string" },
  json: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const;

const HELP = `Takes part in a fleet: checks in at its gateway, trains what it is asked to, sends the change.

  fleetdraft-phone join --bundle DIR --gateway HOST:PORT --token-file FILE --state DIR --lessons PATH… [options]

  --bundle DIR          a bundle directory
  --gateway HOST:PORT   the gateway
  --token-file FILE     the token that the operator gave this device
  --state DIR           what outlives a restart; one process at a time
  --lessons PATH        a lesson, or a folder of them, read anew each time; may be given again
  --ca FILE             certificates to trust, PEM; by default the system's
  --plaintext           without TLS, to this machine only
  --family NAME         the target's vocabulary; by default that of the bundle's first target
  --app-version TEXT    for the operator's counts (fleetdraft-phone 0.1.0)
  --tasks N             end after N tasks were answered; by default never
  --longest-wait S      come back after at most S seconds, 0.1 or more, whatever the gateway says
  --steps, --batch-size, --divergence   as of train
  --json                print a JSON object a line

Lessons never leave this device: what is sent is the change of the adapter, its weight and sums.

Example:
  npx fleetdraft-phone join --bundle ../embedded --gateway fleet.example.org:9444 --ca ca.pem \\
      --token-file token --state phone-state --lessons lessons/
`;

/** Time and chance of this machine. */
const SURROUNDINGS: Surroundings = {
  sleep: async (seconds) => void (await setTimeout(seconds * 1000)),
  now: () => Date.now() / 1000,
  random: Math.random,
};

export async function join(words: readonly string[], print: (line: string) => void): Promise<void> {
  const given = parsed(words, OPTIONS);
  if (given["help"]) return print(HELP);
  const bundle = Bundle.open(required(given, "bundle"));
  const settings = {
    appVersion: text(given, "app-version") ?? "fleetdraft-phone 0.1.0",
    family: familyOf(bundle, text(given, "family")),
    training: trainingConfig(given),
    backOff: BACK_OFF,
  };
  const [lessons, state] = [texts(given, "lessons"), required(given, "state")];
  const tasks = count(given, "tasks", 1, 1e9) ?? Infinity;
  const longestS = number(given, "longest-wait", 0.1, 86400) ?? Infinity;
  const gateway = connect(given);
  const lock = await FolderLock.take(state);
  try {
    const parts = {
      bundle,
      store: Store.open(state),
      gateway,
      lessons: () => readLessons(lessons),
      surroundings: SURROUNDINGS,
    };
    const phone = new Phone(parts, settings);
    for (let answered = 0; answered < tasks;) {
      const turn = await phone.turn();
      print(given["json"] ? JSON.stringify(turn) : told(turn));
      if (turn.kind === "answered") answered += 1;
      else await SURROUNDINGS.sleep(Math.min(turn.afterS, longestS));
    }
  } finally {
    gateway.close();
    await lock.release();
  }
}

function connect(given: Given): GrpcGateway {
  const file = required(given, "token-file");
  if (!existsSync(file)) throw new UserError(`no token at ${file}; ask the fleet's operator for one`);
  const token = readFileSync(file, "utf8").trim();
  if (!/^[\x21-\x7e]{1,128}$/u.test(token))
    throw new UserError(`${file} holds no token, expected 1 to 128 printable characters`);
  const address = required(given, "gateway");
  if (!/^([^/\s]+:\d{1,5}|unix:.+)$/u.test(address))
    throw new UserError(`--gateway is ${address}, expected HOST:PORT, as fleet.example.org:9444`);
  const ca = text(given, "ca");
  return new GrpcGateway({
    gateway: address,
    token,
    plaintext: given["plaintext"] === true,
    ...(ca === undefined ? {} : { ca }),
  });
}

function familyOf(bundle: Bundle, name: string | undefined): string {
  const known = bundle.families;
  const found = name ?? known[0];
  if (found !== undefined && known.includes(found)) return found;
  throw new UserError(`--family is ${found ?? "missing"}, expected one of ${known.join(", ")}`);
}

function told(turn: Turn): string {
  if (turn.kind === "come-back") return `come back in ${turn.afterS.toFixed(1)} s: ${turn.reason}`;
  return `task ${turn.taskId}: ${turn.outcome}${turn.reason && `, ${turn.reason}`}`;
}
