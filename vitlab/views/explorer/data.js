// What Python packed into the page: facts as JSON, and binary parts as base64 of gzip.

export const facts = JSON.parse(document.getElementById("facts").textContent);

/** The bytes of a part of the page, decompressed: Uint8Array. */
export async function readPart(name) {
  const text = atob(document.getElementById(name).textContent.trim());
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Float32 weights from their four byte planes (all lowest bytes first, and so on), which compress better. */
export function joinPlanes(planes) {
  const n = planes.length / 4;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < 4; plane++) {
    for (let i = 0, from = plane * n; i < n; i++) bytes[4 * i + plane] = planes[from + i];
  }
  return bytes;
}

/** One array of an image. How it was packed: "u8" as it is, "f32" as it is, "rows" 8 bits with a scale for each row,
 *  "cosine" 8 bits from -1 to 1, "share" 8 bits from 0 to 1. */
function unpack(bytes, { packing, offset, shape }) {
  const length = shape.reduce((a, b) => a * b, 1);
  const start = bytes.byteOffset + offset;
  if (packing === "u8") return bytes.subarray(offset, offset + length);
  if (packing === "f32") return new Float32Array(bytes.buffer, start, length);
  const codes = bytes.subarray(offset, offset + length);
  if (packing === "share") return Float32Array.from(codes, (code) => code / 255);
  const values = new Float32Array(length);
  if (packing === "cosine") {
    for (let i = 0; i < length; i++) values[i] = (codes[i] * 2) / 255 - 1;
    return values;
  }
  const width = shape.at(-1);
  const scales = new Float32Array(bytes.buffer, start + 4 * Math.ceil(length / 4), length / width);
  for (let i = 0; i < length; i++) values[i] = codes[i] * scales[Math.floor(i / width)];
  return values;
}

/** The images that the page came with: [{name, label, pixels, curves, inside}], `inside` being what the model computed
 *  and `curves` measure.py's removal_curves, flat. */
export async function readImages() {
  const bytes = await readPart("images");
  return facts.images.map(({ name, label, arrays }) => {
    const inside = Object.fromEntries(Object.entries(arrays).map(([key, how]) => [key, unpack(bytes, how)]));
    const { pixels, curves, gradient_rollout, grad_cam, ...rest } = inside;
    const patches = facts.grid ** 2;
    const evidence = new Map(
      facts.targets.map((target, i) => [
        target,
        {
          gradient_rollout: gradient_rollout.subarray(i * patches, (i + 1) * patches),
          grad_cam: grad_cam.subarray(i * patches, (i + 1) * patches),
        },
      ]),
    );
    return { name, label, pixels, curves, inside: { ...rest, evidence } };
  });
}
