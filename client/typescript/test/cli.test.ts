/** The command as a person runs it: what it prints, and mistakes in one line with exit code 2. */

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";

import { FolderLock } from "../src/fleet/folder-lock.js";
import { BUNDLE, scratchFolder } from "./embedded.js";

const SOURCE = join(dirname(fileURLToPath(import.meta.url)), "..", "src");
const CLI = join(SOURCE, "cli.js");
const LOCK = join(SOURCE, "fleet", "folder-lock.js");

function run(...words: string[]): { readonly status: number | null; readonly stdout: string; readonly stderr: string } {
  return spawnSync(process.execPath, [CLI, ...words], { encoding: "utf8", timeout: 60_000 });
}

test("decode prints the README's tokens", () => {
  const { status, stdout } = run("decode", "--bundle", BUNDLE, "--tokens", "1,5,9,11", "--count", "8");
  assert.deepEqual([status, stdout], [0, "487,270,385,1159,1435,406,461,472\n"]);
});

for (const command of ["decode", "train", "join"]) {
  test(`${command} --help has an example`, () => {
    const { status, stdout } = run(command, "--help");
    assert.equal(status, 0);
    assert.match(stdout, new RegExp(`Example:\\n  npx fleetdraft-phone ${command} --bundle`, "u"));
  });
}

const folder = scratchFolder();
const token = join(folder, "token");
writeFileSync(token, "two\nlines");
const secret = join(folder, "secret");
writeFileSync(secret, "abc");
const joined = ["join", "--bundle", BUNDLE, "--gateway", "localhost:1", "--state", join(folder, "state")];

test("of two processes with one state the second ends, and the state of one that was killed is free", async () => {
  const state = join(folder, "of one");
  const words = [...joined, "--token-file", secret, "--plaintext", "--state", state];
  const first = spawn(process.execPath, [CLI, ...words], { stdio: "ignore" });
  while (!existsSync(join(state, "releases"))) await setTimeout(20); // made once it is locked
  const { status, stdout, stderr } = run(...words);
  assert.deepEqual([status, stdout], [2, ""]);
  assert.equal(stderr, `error: ${state} is in use by another process, which must end first\n`);
  first.kill("SIGKILL");
  await once(first, "exit");
  await (await FolderLock.take(state)).release();
});

test("where a lock's name outlives a kill, it is taken over", async () => {
  const state = join(folder, "elsewhere");
  const script = `const { FolderLock } = await import(${JSON.stringify(LOCK)});
    await FolderLock.take(${JSON.stringify(state)}, "darwin");
    process.kill(process.pid, "SIGKILL");`;
  spawnSync(process.execPath, ["--input-type=module", "-e", script], { timeout: 60_000 });
  const lock = await FolderLock.take(state, "darwin");
  await assert.rejects(FolderLock.take(state, "darwin"), /is in use by another process/u);
  await lock.release();
});

const MISTAKES: readonly [readonly string[], RegExp][] = [
  [["dream"], /no command dream, expected decode, train, join/u],
  [["decode", "--tokens", "1"], /--bundle is missing; see --help/u],
  [["decode", "--bundle", folder, "--tokens", "1"], /is not a bundle: no bundle\.json in it/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1,x"], /--tokens holds x, expected whole numbers below 3072/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "--count", "0"], /--count is 0, expected a number from 1 to 512/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "--speed", "9"], /: there is no option --speed; see --help/u],
  [["decode", "-q"], /: there is no option -q; see --help/u],
  [["join", "--bundle"], /: --bundle has no value, or one that it does not take; see --help/u],
  [["join", "--bundle", "--json"], /: --bundle has no value, or one that it does not take; see --help/u],
  [["join", "--help=yes"], /: --help has no value, or one that it does not take; see --help/u],
  [["join", "--bundle", ""], /: --bundle is missing; see --help/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "extra"], /: extra belongs to no option; see --help/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "--adapter", "nowhere"], /no adapter at nowhere/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--lessons", "nowhere"], /no lessons at nowhere/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--lessons", token], /token is no safetensors file/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--divergence", "tvd++sampled"], /expected one of forward-kl, .*, lk/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--factor", "C"], /--factor is C, expected A or B/u],
  [[...joined, "--longest-wait", "0"], /--longest-wait is 0, expected a number from 0\.1 to 86400/u],
  [[...joined, "--token-file", secret, "--gateway", "https://localhost:1"], /expected HOST:PORT/u],
  [[...joined, "--token-file", secret, "--gateway", "localhost"], /--gateway is localhost, expected HOST:PORT/u],
  [[...joined, "--token-file", secret, "--ca", secret], /holds no certificate/u],
  [[...joined, "--token-file", "nowhere"], /no token at nowhere/u],
  [[...joined, "--token-file", token], /holds no token/u],
  [[...joined, "--token-file", join(BUNDLE, "targets")], /EISDIR/u],
];

for (const [words, message] of MISTAKES) {
  test(`a mistake in one line: ${message.source}`, () => {
    const { status, stdout, stderr } = run(...words);
    assert.equal(status, 2, stderr);
    assert.match(stderr, message);
    assert.match(stderr, /^error: [^\n]*\n$/u);
    assert.equal(stdout, "");
  });
}
