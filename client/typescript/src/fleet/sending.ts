/** Sends an update: in chunks, from where it was cut; sent twice it counts once. It knows no training. */

import { again, type BackOff, type Surroundings } from "./back-off.js";
import { CHUNK_BYTES, type Gateway, type UploadChunk, type UploadReply } from "./gateway.js";
import type { Pending } from "./store.js";

/** The gateway's answer to an update. */
export async function sent(
  pending: Pending,
  gateway: Gateway,
  backOff: BackOff,
  surroundings: Surroundings,
): Promise<UploadReply> {
  const { taskId, contentSha256 } = pending.head;
  const attempt = async (): Promise<UploadReply> => {
    const { received, done } = await gateway.uploadState(taskId, contentSha256);
    const size = pending.content.byteLength;
    return gateway.upload(chunks(pending, done ? size : Math.min(received, size)));
  };
  return again(attempt, backOff, surroundings, ["again", "resume"]);
}

/** The head, and what the gateway has not got; with all there, or answered already, the head alone. */
function* chunks({ head, content }: Pending, from: number): Generator<UploadChunk> {
  for (let at = from; at === from || at < content.byteLength; at += CHUNK_BYTES) {
    const data = content.subarray(at, at + CHUNK_BYTES);
    yield at === from ? { head, offset: at, data } : { offset: at, data };
  }
}
