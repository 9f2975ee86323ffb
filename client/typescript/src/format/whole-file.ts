/** Files that are either whole or absent, over a kill or a power cut. */

import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";
import { dirname } from "node:path";

/** Writes a file beside its place, then puts it there. */
export function writeWhole(path: string, content: Uint8Array | string): void {
  const scratch = `${path}.new`;
  const file = openSync(scratch, "w", 0o600);
  try {
    const bytes = typeof content === "string" ? Buffer.from(content) : content;
    for (let at = 0; at < bytes.byteLength;) at += writeSync(file, bytes, at);
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
  renameSync(scratch, path);
  syncFolder(dirname(path));
}

/** Removes a file, if there is one. */
export function remove(path: string): void {
  rmSync(path, { force: true });
  syncFolder(dirname(path));
}

/** Makes a change of names last. */
function syncFolder(folder: string): void {
  if (process.platform === "win32") return; // it has no such call, and renames in order
  const handle = openSync(folder, "r");
  try {
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}
