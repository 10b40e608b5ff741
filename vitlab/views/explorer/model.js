// The model in the page: three small ONNX graphs that share one block of weights, run by onnxruntime-web in WebAssembly.

import { facts, joinPlanes, readPart } from "./data.js";

const sessions = {};
let ort = null;
let queue = Promise.resolve(); // a session takes one call at a time

/** Start onnxruntime and the graph that predicts. Throws where WebAssembly cannot start. */
export async function startModel() {
  const [script, wasm, planes] = await Promise.all(["ort", "wasm", "weights"].map(readPart));
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  ort = await import(url);
  URL.revokeObjectURL(url);
  ort.env.wasm.numThreads = 1; // more would need a server that sends two headers
  ort.env.wasm.wasmBinary = wasm;
  ort.env.logLevel = "error";
  const weights = joinPlanes(planes);
  for (const name of ["predict", "inside", "evidence"]) {
    const options = { executionProviders: ["wasm"], externalData: [{ path: "weights", data: weights }] };
    sessions[name] = readPart(name).then((graph) => ort.InferenceSession.create(graph, options));
    await sessions[name];
  }
}

export const hasModel = () => "evidence" in sessions;

/** Resolves when the calls made so far have ended. */
export const idle = () => queue;

async function run(name, feeds) {
  const call = queue.then(async () => (await sessions[name]).run(feeds));
  queue = call.catch(() => {});
  return call;
}

/** Pixels row by row, S x S x C, several images after one another, as a tensor N x C x S x S. */
function toTensor(pixels) {
  const { size, channels } = facts;
  const area = size * size;
  const n = pixels.length / (area * channels);
  if (!Number.isInteger(n) || n < 1) {
    throw new RangeError(`pixels: ${pixels.length} values; an image has ${size} x ${size} x ${channels}`);
  }
  const planes = new Uint8Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) {
    const [place, channel] = [Math.floor(i / channels), i % channels];
    const [image, inside] = [Math.floor(place / area), place % area];
    planes[(image * channels + channel) * area + inside] = pixels[i];
  }
  return new ort.Tensor("uint8", planes, [n, channels, size, size]);
}

export function softmax(logits) {
  const top = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - top));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** Class probabilities of one or more images: an array for each. */
export async function predict(pixels) {
  const { logits } = await run("predict", { images: toTensor(pixels) });
  const [n, classes] = logits.dims;
  return Array.from({ length: n }, (_, i) => softmax(logits.data.subarray(i * classes, (i + 1) * classes)));
}

/** All that the page shows of one image (measure.py: Inside), by name; no evidence yet. */
export async function lookInside(pixels) {
  const found = await run("inside", { images: toTensor(pixels) });
  const arrays = Object.entries(found).map(([name, tensor]) => [name, tensor.data]);
  return { ...Object.fromEntries(arrays), evidence: new Map() };
}

/** Gradient rollout and Grad-CAM for one class (measure.py: Evidence). */
export async function findEvidence(pixels, target) {
  const targets = new ort.Tensor("int64", BigInt64Array.of(BigInt(target)), [1]);
  const found = await run("evidence", { images: toTensor(pixels), target: targets });
  return { gradient_rollout: found.gradient_rollout.data, grad_cam: found.grad_cam.data };
}
