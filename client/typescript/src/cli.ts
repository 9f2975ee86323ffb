#!/usr/bin/env node
/** The command fleetdraft-phone: finds the sub-command, and tells a user's mistake in one line with exit code 2. */

import { decode } from "./cli/decode-command.js";
import { join } from "./cli/join-command.js";
import { train } from "./cli/train-command.js";
import { UserError, firstLine } from "./errors.js";

const COMMANDS = { decode, train, join } as const;

const HELP = `A device of a fleet without Python.

  fleetdraft-phone decode   the likeliest continuation of drafter tokens
  fleetdraft-phone train    an adapter trained on lessons
  fleetdraft-phone join     takes part in a fleet through its gateway

Each has --help with an example.
`;

async function main(words: readonly string[]): Promise<number> {
  const [name = "--help", ...rest] = words;
  if (name === "--help" || name === "-h") return said(HELP);
  const command = Object.entries(COMMANDS).find(([known]) => known === name)?.[1];
  try {
    if (command === undefined) throw new UserError(`no command ${name}, expected ${Object.keys(COMMANDS).join(", ")}`);
    await command(rest, (line) => said(line));
    return 0;
  } catch (error) {
    if (!(error instanceof UserError) && !isOfSystem(error)) throw error;
    process.stderr.write(`error: ${firstLine(error)}\n`);
    return 2;
  }
}

/** A file that cannot be read or written, for example. */
function isOfSystem(error: unknown): boolean {
  return error instanceof Error && "syscall" in error;
}

function said(line: string): number {
  process.stdout.write(line.endsWith("\n") ? line : `${line}\n`);
  return 0;
}

process.exitCode = await main(process.argv.slice(2));
