/** Words of a command line as checked options. It knows no command. */

import { parseArgs, type ParseArgsConfig } from "node:util";

import { UserError, firstLine } from "../errors.js";

export type Given = Readonly<Record<string, string | boolean | readonly (string | boolean)[] | undefined>>;

/** What Node.js' codes for mistakes mean; `word` is what each is about. */
const MISTAKES: Readonly<Record<string, (word: string) => string>> = {
  ERR_PARSE_ARGS_UNKNOWN_OPTION: (word) => `there is no option ${word}`,
  ERR_PARSE_ARGS_UNEXPECTED_POSITIONAL: (word) => `${word} belongs to no option`,
  // Where a value would begin with a dash, the next option is meant more often.
  ERR_PARSE_ARGS_INVALID_OPTION_VALUE: (word) => `${word} has no value, or one that it does not take`,
};

/** Parses options; a mistake is told in one line. */
export function parsed(words: readonly string[], options: NonNullable<ParseArgsConfig["options"]>): Given {
  try {
    return parseArgs({ args: [...words], options, strict: true, allowPositionals: false }).values;
  } catch (error) {
    throw new UserError(`${mistake(error)}; see --help`);
  }
}

function mistake(error: unknown): string {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  const word = /'(?:-\w, )?([^' ]*)/u.exec(firstLine(error))?.[1] ?? "";
  return MISTAKES[code]?.(word) ?? firstLine(error);
}

export function text(given: Given, name: string): string | undefined {
  const value = given[name];
  return typeof value === "string" ? value : undefined;
}

export function required(given: Given, name: string): string {
  const value = text(given, name);
  if (value === undefined || value === "") throw new UserError(`--${name} is missing; see --help`);
  return value;
}

export function texts(given: Given, name: string): string[] {
  const value = given[name];
  return Array.isArray(value) ? value.filter((one): one is string => typeof one === "string") : [];
}

/** A number in a range. */
export function number(given: Given, name: string, least: number, most: number): number | undefined {
  const value = text(given, name);
  if (value === undefined) return undefined;
  const found = Number(value);
  if (value.trim() === "" || !(found >= least && found <= most)) {
    throw new UserError(`--${name} is ${value}, expected a number from ${least} to ${most}`);
  }
  return found;
}

/** A whole number in a range. */
export function count(given: Given, name: string, least: number, most: number): number | undefined {
  const found = number(given, name, least, most);
  if (found !== undefined && !Number.isInteger(found))
    throw new UserError(`--${name} is ${found}, expected a whole number`);
  return found;
}

/** Whole numbers with commas between them. */
export function tokens(given: Given, name: string, vocabulary: number): number[] {
  return required(given, name)
    .split(",")
    .map((word) => {
      const token = Number(word);
      if (word.trim() === "" || !Number.isInteger(token) || token < 0 || token >= vocabulary) {
        throw new UserError(
          `--${name} holds ${word || "nothing"}, expected whole numbers below ${vocabulary}, as 1,5,9`,
        );
      }
      return token;
    });
}
