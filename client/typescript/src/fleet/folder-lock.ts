/**
 * One process at a time on a folder, for as long as it lives: a kill or a power cut leaves no lock behind. It knows
 * nothing of what is in the folder.
 *
 * Node.js has no file locks. A name to listen on is one as well, since the system gives it to one process and takes it
 * back when that ends: on Linux an abstract socket, on Windows a pipe. Elsewhere it is a socket in the folder for
 * temporary files, whose name does outlive a kill and goes to the next process then.
 */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, rmSync, statSync } from "node:fs";
import { connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { UserError } from "../errors.js";

export class FolderLock {
  private constructor(private readonly server: Server) {}

  /** Locks a folder, made if it is not there; a mistake of the user if another process has it. */
  static async take(folder: string, platform: NodeJS.Platform = process.platform): Promise<FolderLock> {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const address = addressOf(folder, platform);
    const isFile = !["linux", "win32"].includes(platform);
    const server = (await listening(address)) ?? (isFile ? await listeningAnew(address) : undefined);
    if (server === undefined) throw new UserError(`${folder} is in use by another process, which must end first`);
    server.unref(); // the lock ends with the process and does not keep it
    return new FolderLock(server);
  }

  async release(): Promise<void> {
    this.server.close();
    await once(this.server, "close");
  }
}

/** The same for all paths to a folder. */
function addressOf(folder: string, platform: NodeJS.Platform): string {
  const { dev, ino } = statSync(folder, { bigint: true });
  const digest = createHash("sha256").update(`${dev}:${ino}`).digest("hex");
  const name = `fleetdraft-phone-${digest.slice(0, 32)}`;
  if (platform === "linux") return `\0${name}`;
  return platform === "win32" ? `\\\\.\\pipe\\${name}` : join(tmpdir(), `${name}.sock`);
}

/** Undefined if the name is taken. */
async function listening(address: string): Promise<Server | undefined> {
  const server = createServer((socket) => socket.destroy());
  server.listen(address);
  try {
    await once(server, "listening");
    return server;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EADDRINUSE") return undefined;
    throw error;
  }
}

/** Takes over the name of a process that was killed; undefined if somebody answers to it. */
async function listeningAnew(address: string): Promise<Server | undefined> {
  const socket = connect(address);
  try {
    await once(socket, "connect");
    return undefined;
  } catch {
    rmSync(address, { force: true });
    return await listening(address);
  } finally {
    socket.destroy();
  }
}
