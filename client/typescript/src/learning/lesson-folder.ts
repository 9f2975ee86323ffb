/** The lessons that lie in files or folders, in the order of their names. */

import { existsSync, readFileSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";

import { ModelError } from "../errors.js";
import { readLesson, type Lesson } from "./lesson.js";

const SUFFIX = ".safetensors";

/** Reads each file given, and every *.safetensors of each folder given. */
export function readLessons(paths: readonly string[]): Lesson[] {
  return paths.flatMap(filesAt).map((file) => readLesson(readFileSync(file), file));
}

function filesAt(path: string): string[] {
  if (!existsSync(path)) throw new ModelError(`no lessons at ${path}, expected a file or folder of *${SUFFIX}`);
  if (!statSync(path).isDirectory()) return [path];
  const names = readdirSync(path).filter((name) => name.endsWith(SUFFIX));
  return names.sort().map((name) => join(path, name));
}
