/** What a device asks of a fleet's gateway, in five verbs: the seam between the phone and gRPC. */

import type { CheckInReply__Output as CheckInReply } from "../../generated/fleetdraft/fleet/v1/CheckInReply.js";
import type { CheckInRequest } from "../../generated/fleetdraft/fleet/v1/CheckInRequest.js";
import type { ReleaseChunk__Output as ReleaseChunk } from "../../generated/fleetdraft/fleet/v1/ReleaseChunk.js";
import type { ReleaseHead__Output as ReleaseHead } from "../../generated/fleetdraft/fleet/v1/ReleaseHead.js";
import type { ReportReply__Output as ReportReply } from "../../generated/fleetdraft/fleet/v1/ReportReply.js";
import type { ReportRequest } from "../../generated/fleetdraft/fleet/v1/ReportRequest.js";
import type { Task__Output as Task } from "../../generated/fleetdraft/fleet/v1/Task.js";
import type { UploadChunk } from "../../generated/fleetdraft/fleet/v1/UploadChunk.js";
import type { UploadReply__Output as UploadReply } from "../../generated/fleetdraft/fleet/v1/UploadReply.js";
import type { UploadStateReply__Output as UploadState } from "../../generated/fleetdraft/fleet/v1/UploadStateReply.js";

export type { CheckInReply, CheckInRequest, ReleaseChunk, ReleaseHead, ReportReply, ReportRequest };
export type { Task, UploadChunk, UploadReply, UploadState };

/** The protocol's version. */
export const PROTOCOL = 1;
/** The most that a chunk holds. */
export const CHUNK_BYTES = 262144;

/** Every call may fail with a `Refusal`. */
export interface Gateway {
  checkIn(request: CheckInRequest): Promise<CheckInReply>;
  fetchRelease(digest: string, offset: number): AsyncIterable<ReleaseChunk>;
  uploadState(taskId: string, contentSha256: string): Promise<UploadState>;
  upload(chunks: Iterable<UploadChunk>): Promise<UploadReply>;
  report(request: ReportRequest): Promise<ReportReply>;
}

/** What to do about a call that failed. */
export type Remedy = "again" | "resume" | "check-in" | "stop";

/** A call that failed, by its status code. */
export class Refusal extends Error {
  constructor(
    /** Name of the gRPC status code. */
    readonly code: string,
    details: string,
  ) {
    super(`${code}: ${details}`);
  }

  get remedy(): Remedy {
    return REMEDIES[this.code] ?? "stop";
  }
}

/** Every code that is not here is an error that trying again will not mend. */
const REMEDIES: Readonly<Record<string, Remedy>> = {
  ABORTED: "again",
  DEADLINE_EXCEEDED: "again",
  INTERNAL: "again",
  RESOURCE_EXHAUSTED: "again",
  UNAVAILABLE: "again",
  OUT_OF_RANGE: "resume",
  NOT_FOUND: "check-in",
};
