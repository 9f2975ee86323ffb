/** A gateway in memory: one release, tasks in a list, uploads kept byte by byte; calls can be made to fail. */

import {
  Refusal,
  type CheckInReply,
  type CheckInRequest,
  type Gateway,
  type ReleaseChunk,
  type ReleaseHead,
  type ReportRequest,
  type Task,
  type UploadChunk,
} from "../src/fleet/gateway.js";
import type { LoraAdapter } from "../src/model/adapter.js";
import { sha256, toContent } from "../src/model/content.js";

const CHUNK = 100_000;

export class TableGateway implements Gateway {
  readonly checkIns: CheckInRequest[] = [];
  readonly reports: ReportRequest[] = [];
  /** Heads of the uploads that came whole, and their contents. */
  readonly counted: { readonly head: NonNullable<UploadChunk["head"]>; readonly content: Buffer }[] = [];
  /** Offsets at which transfers began. */
  readonly fetches: number[] = [];
  readonly uploads: number[] = [];
  /** Bytes after which the next transfers are cut, one each. */
  cuts: number[] = [];
  /** Whether the answers to the next uploads are lost, one each. */
  losses: boolean[] = [];
  /** Codes with which the next calls fail, one each. */
  failures: string[] = [];
  tasks: Task[] = [];
  promoted: ReleaseHead | null = null;
  outcome: "ACCEPTED" | "REJECTED" | "LATE" = "ACCEPTED";
  /** Added to the offsets that are told on the way down. */
  shift = 0;
  /** Changes content on its way down. */
  spoil: (content: Buffer) => Buffer = (content) => content;
  private readonly received = new Map<string, Buffer>();

  constructor(
    readonly release: LoraAdapter,
    readonly base: string,
  ) {}

  get content(): Uint8Array {
    return toContent(this.release.arrays, this.release.layout);
  }

  get head(): ReleaseHead {
    const [digest, layoutFingerprint] = [this.release.digest, this.release.layout.fingerprint];
    const [contentSha256, contentBytes] = [sha256(this.content), this.content.byteLength];
    return { number: 3, digest, base: this.base, layout: "", contentSha256, contentBytes, layoutFingerprint };
  }

  task(change: Partial<Task> = {}): Task {
    const terms = { round: 1, seed: 0, factors: ["A", "B"], clipNorm: 10, deadlineS: 60 };
    return { id: "task-1", kind: "TRAIN", release: this.head, ...terms, ...change };
  }

  async checkIn(request: CheckInRequest): Promise<CheckInReply> {
    this.mayFail();
    this.checkIns.push(request);
    const [task] = this.tasks;
    if (task !== undefined && request.eligible === true) return { what: "task", task, promoted: this.promoted };
    return { what: "comeBack", comeBack: { afterS: 7, reason: "NO_ROUND" }, promoted: this.promoted };
  }

  async *fetchRelease(digest: string, offset: number): AsyncGenerator<ReleaseChunk> {
    this.mayFail();
    this.fetches.push(offset);
    if (digest !== this.promoted?.digest && digest !== this.tasks[0]?.release?.digest) {
      throw new Refusal("NOT_FOUND", "no such release");
    }
    const content = this.spoil(Buffer.from(this.content));
    const end = Math.min(content.byteLength, this.cuts.shift() ?? Infinity);
    for (let at = offset; at < end; at += CHUNK) {
      yield { offset: at + this.shift, data: content.subarray(at, Math.min(at + CHUNK, end)) };
    }
    if (end < content.byteLength) throw new Refusal("UNAVAILABLE", "cut");
  }

  async uploadState(taskId: string, contentSha256: string): Promise<{ received: number; done: boolean }> {
    this.mayFail();
    const done = this.counted.some(({ head }) => head.taskId === taskId);
    const content = this.received.get(taskId + contentSha256);
    return { received: done ? 0 : (content?.byteLength ?? 0), done };
  }

  async upload(chunks: Iterable<UploadChunk>): Promise<{ outcome: "ACCEPTED" | "REJECTED" | "LATE"; reason: string }> {
    this.mayFail();
    const cut = this.cuts.shift() ?? Infinity;
    let head: NonNullable<UploadChunk["head"]> = {};
    let content: Buffer = Buffer.alloc(0);
    for (const chunk of chunks) {
      if (chunk.head) {
        head = chunk.head;
        this.uploads.push(Number(chunk.offset));
        content = this.received.get(this.key(head)) ?? content;
      }
      if (this.counted.some((update) => update.head.taskId === head.taskId)) break;
      if (chunk.offset !== content.byteLength) throw new Refusal("OUT_OF_RANGE", `offset is ${String(chunk.offset)}`);
      content = Buffer.concat([content, chunk.data as Uint8Array]);
      this.received.set(this.key(head), content);
      if (content.byteLength >= cut) throw new Refusal("UNAVAILABLE", "cut");
    }
    this.tasks = [];
    const lost = this.losses.shift() ?? false;
    if (!this.counted.some((update) => update.head.taskId === head.taskId)) this.counted.push({ head, content });
    if (lost) throw new Refusal("UNAVAILABLE", "the answer was lost");
    return { outcome: this.outcome, reason: "" };
  }

  async report(request: ReportRequest): Promise<{ outcome: "ACCEPTED"; reason: string }> {
    this.mayFail();
    this.reports.push(request);
    this.tasks = [];
    return { outcome: "ACCEPTED", reason: "" };
  }

  private key(head: NonNullable<UploadChunk["head"]>): string {
    return `${head.taskId}${head.contentSha256}`;
  }

  private mayFail(): void {
    const code = this.failures.shift();
    if (code !== undefined && code !== "") throw new Refusal(code, "as the test says");
  }
}
