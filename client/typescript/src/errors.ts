/** What this device raises on purpose. Each message is one line: what was given, what was expected, what to do. */

/** Bad input, or a gateway that will not have us: the command line prints the message and exits with 2. */
export class UserError extends Error {
  override readonly name: string = "UserError";
}

/** A file that is none of ours, or is damaged. */
export class ModelError extends UserError {
  override readonly name = "ModelError";
}

/** Two artefacts that do not belong together. */
export class FingerprintError extends UserError {
  override readonly name = "FingerprintError";
}

/** The first line of any error's message. */
export function firstLine(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  return message.split("\n")[0] ?? "";
}
