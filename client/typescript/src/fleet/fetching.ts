/** Fetches a release: in chunks, from where it was cut, checked as a whole before it is kept. It knows no task. */

import { FingerprintError, ModelError } from "../errors.js";
import { LoraAdapter } from "../model/adapter.js";
import { contentBytes, fromContent, sha256 } from "../model/content.js";
import type { Bundle } from "../model/bundle.js";
import { again, type BackOff, type Surroundings } from "./back-off.js";
import { Refusal, type Gateway, type ReleaseHead } from "./gateway.js";
import type { Store } from "./store.js";

/** The adapter of a release, from the store or from the gateway. */
export async function release(
  head: ReleaseHead,
  bundle: Bundle,
  store: Store,
  gateway: Gateway,
  backOff: BackOff,
  surroundings: Surroundings,
): Promise<LoraAdapter> {
  checkFits(head, bundle);
  const kept = store.adapter(head.digest, bundle.layout);
  if (kept !== undefined) return kept;
  const content = await again(() => fetched(head, store, gateway), backOff, surroundings);
  const adapter = new LoraAdapter(bundle.layout, fromContent(content, bundle.layout));
  if (adapter.digest !== head.digest) {
    store.restart(head.digest);
    throw new FingerprintError(`release ${head.number} has digest ${adapter.digest}, expected ${head.digest}`);
  }
  store.keep(adapter);
  return adapter;
}

/** Before a byte is fetched: the release is for this bundle, and as large as its layout says. */
function checkFits(head: ReleaseHead, bundle: Bundle): void {
  const expected = { base: bundle.base, layoutFingerprint: bundle.layout.fingerprint };
  for (const [key, value] of Object.entries(expected) as [keyof typeof expected, string][]) {
    if (head[key] !== value) {
      const given = `release ${head.number} has ${key} ${head[key].slice(0, 12)}…`;
      throw new FingerprintError(`${given}, this bundle's is ${value.slice(0, 12)}…; update the bundle`);
    }
  }
  const size = contentBytes(bundle.layout);
  if (head.contentBytes !== size) {
    throw new ModelError(`release ${head.number} has ${head.contentBytes} bytes, its layout has ${size}`);
  }
}

async function fetched(head: ReleaseHead, store: Store, gateway: Gateway): Promise<Uint8Array> {
  let at = store.part(head.digest).byteLength;
  if (at < head.contentBytes) {
    for await (const { offset, data } of gateway.fetchRelease(head.digest, at)) {
      if (offset !== at || at + data.byteLength > head.contentBytes) {
        throw new ModelError(`a chunk of release ${head.number} is at ${offset}, expected ${at}`);
      }
      store.append(head.digest, data);
      at += data.byteLength;
    }
  }
  const content = store.part(head.digest);
  if (content.byteLength < head.contentBytes) throw new Refusal("UNAVAILABLE", "the release ended early");
  if (sha256(content) === head.contentSha256) return content;
  store.restart(head.digest);
  throw new Refusal("UNAVAILABLE", "the release came damaged");
}
