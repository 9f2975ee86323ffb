/** Fields of parsed JSON, checked one by one. It knows no file format. */

import { ModelError } from "../errors.js";

export type JsonObject = Readonly<Record<string, unknown>>;

/** Parses an object. `where` names it in messages. */
export function parsedObject(text: string, where: string): JsonObject {
  try {
    return asObject(JSON.parse(text), where);
  } catch (error) {
    if (error instanceof ModelError) throw error;
    throw new ModelError(`${where} is no JSON: ${String(error).slice(0, 100)}`);
  }
}

export function asObject(value: unknown, where: string): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(where, value, "an object");
  return value as JsonObject;
}

export function asList(value: unknown, where: string): readonly unknown[] {
  if (!Array.isArray(value)) throw wrong(where, value, "a list");
  return value as unknown[];
}

export function textOf(object: JsonObject, name: string, where: string): string {
  const value = object[name];
  if (typeof value !== "string") throw wrong(`${where}: ${name}`, value, "a text");
  return value;
}

export function numberOf(object: JsonObject, name: string, where: string): number {
  const value = object[name];
  if (typeof value !== "number" || !Number.isFinite(value)) throw wrong(`${where}: ${name}`, value, "a number");
  return value;
}

/** A whole number of at least 0. */
export function countOf(object: JsonObject, name: string, where: string): number {
  const value = numberOf(object, name, where);
  if (!Number.isSafeInteger(value) || value < 0) throw wrong(`${where}: ${name}`, value, "a whole number >= 0");
  return value;
}

export function flagOf(object: JsonObject, name: string, where: string): boolean {
  const value = object[name];
  if (typeof value !== "boolean") throw wrong(`${where}: ${name}`, value, "true or false");
  return value;
}

function wrong(where: string, value: unknown, expected: string): ModelError {
  return new ModelError(`${where} is ${(JSON.stringify(value) ?? "missing").slice(0, 80)}, expected ${expected}`);
}
