/** `fleetdraft-phone decode`: the likeliest continuation of drafter tokens. */

import { Bundle } from "../model/bundle.js";
import { Decoder, greedy } from "../runtime/decoder.js";
import { UserError } from "../errors.js";
import { count, parsed, required, text, tokens } from "./options.js";

const HELP = `Continues drafter tokens with the likeliest ones.

  fleetdraft-phone decode --bundle DIR --tokens IDS [--count N] [--adapter PATH] [--json]

  --bundle DIR     a bundle directory
  --tokens IDS     token ids of the drafter, with commas between them
  --count N        how many tokens to add (16)
  --adapter PATH   an adapter directory, or a release as join keeps it; by default the one that changes nothing
  --json           print JSON

Example:
  npx fleetdraft-phone decode --bundle ../embedded --tokens 1,5,9,11 --count 8
`;

export async function decode(words: readonly string[], print: (line: string) => void): Promise<void> {
  const given = parsed(words, {
    bundle: { type: "string" },
    tokens: { type: "string" },
    count: { type: "string" },
    adapter: { type: "string" },
    json: { type: "boolean" },
    help: { type: "boolean", short: "h" },
  });
  if (given["help"]) return print(HELP);
  const bundle = Bundle.open(required(given, "bundle"));
  const prompt = tokens(given, "tokens", bundle.layout.shape.vocab_size);
  const wanted = count(given, "count", 1, bundle.contextLimit) ?? 16;
  // The last token is given and never read back.
  if (prompt.length + wanted - 1 > bundle.contextLimit) {
    throw new UserError(`${prompt.length} tokens and ${wanted} more, the context holds ${bundle.contextLimit}`);
  }
  const decoder = await Decoder.open(bundle, bundle.adapter(text(given, "adapter")));
  const found = await greedy(decoder, prompt, wanted);
  await decoder.close();
  print(given["json"] ? JSON.stringify({ schema: 1, tokens: found }) : found.join(","));
}
