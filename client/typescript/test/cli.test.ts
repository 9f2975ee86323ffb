/** The command as a person runs it: what it prints, and mistakes in one line with exit code 2. */

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { BUNDLE, scratchFolder } from "./embedded.js";

const CLI = join(dirname(fileURLToPath(import.meta.url)), "..", "src", "cli.js");

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
const joined = ["join", "--bundle", BUNDLE, "--gateway", "localhost:1", "--state", join(folder, "state")];

const MISTAKES: readonly [readonly string[], RegExp][] = [
  [["dream"], /no command dream, expected decode, train, join/u],
  [["decode", "--tokens", "1"], /--bundle is missing; see --help/u],
  [["decode", "--bundle", folder, "--tokens", "1"], /is not a bundle: no bundle\.json in it/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1,x"], /--tokens holds x, expected whole numbers below 3072/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "--count", "0"], /--count is 0, expected a number from 1 to 512/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "--speed", "9"], /Unknown option '--speed'/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "extra"], /Unexpected argument 'extra'/u],
  [["decode", "--bundle", BUNDLE, "--tokens", "1", "--adapter", "nowhere"], /no adapter at nowhere/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--lessons", "nowhere"], /no lessons at nowhere/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--lessons", token], /token is no safetensors file/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--divergence", "tvd++sampled"], /expected one of forward-kl, .*, lk/u],
  [["train", "--bundle", BUNDLE, "--out", "x", "--factor", "C"], /--factor is C, expected A or B/u],
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
