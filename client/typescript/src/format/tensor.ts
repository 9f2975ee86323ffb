/** float32 arrays with a shape, by name: what adapters, gradients and updates are made of. It knows no file. */

export interface FloatTensor {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

export type Floats = ReadonlyMap<string, FloatTensor>;

/** How many entries an array of a shape has. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, axis) => product * axis, 1);
}

export function zeros(shape: readonly number[]): FloatTensor {
  return { shape, data: new Float32Array(sizeOf(shape)) };
}

export function sameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((axis, i) => axis === b[i]);
}

/** Each tensor changed entry by entry; results are rounded to float32. */
export function mapped(
  tensors: Floats,
  entry: (value: number, at: number, name: string) => number,
): Map<string, FloatTensor> {
  const found = new Map<string, FloatTensor>();
  for (const [name, { shape, data }] of tensors) {
    found.set(name, { shape, data: data.map((value, at) => entry(value, at, name)) });
  }
  return found;
}

/** The tensor of a name that is known to be there. */
export function held(tensors: Floats, name: string): FloatTensor {
  const tensor = tensors.get(name);
  if (tensor === undefined) throw new RangeError(`no tensor ${name}`);
  return tensor;
}

/** A tensor's bytes, little-endian, row-major: its own memory. */
export function bytesOf(tensor: FloatTensor): Uint8Array {
  return new Uint8Array(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
}
