// What is shown, and the numbers behind it.

import { facts } from "./data.js";

export const POOLED = -1; // the token that the head reads, where it is no single token
export const DECIDING = facts.pool === "cls" ? 0 : POOLED;
const patches = facts.grid ** 2;
export const firstPatch = facts.tokens - patches;

export const state = {
  token: DECIDING,
  layer: facts.layers, // from 1; 0 is what enters the first layer
  head: "mean", // or from 0
  kind: "attention",
  target: 0, // the class that evidence is for
  over: false,
  hidden: new Set(), // patches
  name: "",
  label: null,
  pixels: null, // of the image, nothing hidden
  curves: null, // of deletion and insertion, if they were computed beforehand
  now: null, // with the hidden patches
  inside: null, // of `now`
  before: null, // class probabilities with nothing hidden
  probabilities: null,
};

export const KINDS = {
  attention: { title: "Attention", hint: "One head of one layer: the share of its attention that each patch gets, before that layer adds up what it found." },
  rollout: { title: "Rollout", hint: "Attention through all layers up to this one, heads averaged, residual connections counted (Abnar and Zuidema, 2020)." },
  similarity: { title: "Similarity", hint: "How alike the patches’ tokens are after a layer (cosine). Layer 0 is what enters the first: patch plus position." },
  gradient_rollout: { title: "Gradient rollout", hint: "Attention through all layers, counting only what raises the chosen class (Chefer et al., 2021). Choose the class at “What it says”." },
  grad_cam: { title: "Grad-CAM", hint: `Which patches’ tokens, ${facts.pool === "seq" ? "after the last layer" : "before the last attention"}, raise the chosen class (Selvaraju et al., 2017). Choose the class at “What it says”.` },
};
export const isEvidence = (kind) => kind === "gradient_rollout" || kind === "grad_cam";

/** "row 3, column 5", or the name of a token that is no patch. */
export function tokenName(token) {
  if (token === POOLED) return facts.pooled;
  if (token < firstPatch) return "CLS";
  const patch = token - firstPatch;
  return `row ${Math.floor(patch / facts.grid) + 1}, column ${(patch % facts.grid) + 1}`;
}

/** A function (query, key) -> share of attention, of a layer from 1 and a head; of kind "rollout" up to that layer. */
function sharesOf(inside, kind, layer, head) {
  const { tokens, heads } = facts;
  const square = tokens * tokens;
  if (kind === "rollout") return (q, k) => inside.rollout[(layer - 1) * square + q * tokens + k];
  const start = (layer - 1) * heads * square;
  if (head !== "mean") return (q, k) => inside.attention[start + head * square + q * tokens + k];
  return (q, k) => {
    let sum = 0;
    for (let h = 0; h < heads; h++) sum += inside.attention[start + h * square + q * tokens + k];
    return sum / heads;
  };
}

/** What a token attends to ("from"), or what attends to it ("to"): N values, times uniform. */
export function tokenMap(inside, { kind, layer, head, token }, direction = "from") {
  const n = facts.tokens;
  const share = sharesOf(inside, kind, layer, head);
  const pair = direction === "from" ? share : (q, k) => share(k, q);
  const weights = inside.weights;
  return Float32Array.from({ length: n }, (_, k) => {
    if (token !== POOLED) return pair(token, k) * n;
    let sum = 0;
    for (let q = 0; q < n; q++) if (weights[q]) sum += weights[q] * pair(q, k);
    return sum * n;
  });
}

/** Cosine similarity of one patch's token with all patches after a layer (0: before the first): P values. */
export function similarityMap(inside, layer, token) {
  const from = (layer * patches + Math.max(0, token - firstPatch)) * patches;
  return inside.similarity.subarray(from, from + patches);
}

/** P values in times of their mean; zeros stay zeros. */
export function timesMean(values) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  return Float32Array.from(values, (value) => (mean > 0 ? value / mean : 0));
}

/** The curves {map, random} of the map that is shown, computed beforehand in Python (measure.py: removal_curves); null
 *  where there are none. */
export function curvesBeforehand(deed) {
  const { curves, hidden, before, target, kind, layer, head, token } = state;
  const which = facts.tested.indexOf(kind);
  if (!curves || hidden.size || which < 0 || target !== before.indexOf(Math.max(...before))) return null;
  if (!isEvidence(kind) && (token !== DECIDING || layer !== facts.layers)) return null;
  if (kind === "attention" && head !== "mean") return null;
  const rows = facts.tested.length + 1;
  const points = curves.length / (2 * rows);
  const curve = (row) => curves.subarray(row * points, (row + 1) * points);
  const first = deed === "deletion" ? 0 : rows;
  return { map: curve(first + which), random: curve(first + rows - 1) };
}

/** The maps to draw: [{title, values (P), all (N or P), scale}]; empty where evidence is not computed yet. */
export function mapsNow() {
  const { kind, layer, token, target, inside } = state;
  if (kind === "similarity") {
    const values = similarityMap(inside, layer, token);
    return [{ title: `tokens like ${tokenName(Math.max(token, firstPatch))}`, values, scale: facts.scales.cosine }];
  }
  if (isEvidence(kind)) {
    const found = inside.evidence.get(target);
    if (!found) return [];
    const values = timesMean(found[kind]);
    return [{ title: `evidence for ${facts.classes[target]}`, values, scale: facts.scales.mean }];
  }
  const verbs = kind === "rollout" ? ["draws on", "goes into"] : ["looks at", "is looked at by"];
  return ["from", "to"].map((direction, i) => {
    const all = tokenMap(inside, state, direction);
    const title = `${tokenName(token)} ${verbs[i]}`;
    return { title, all, values: all.subarray(firstPatch), scale: facts.scales.uniform };
  });
}
