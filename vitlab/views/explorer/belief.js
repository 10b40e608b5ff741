// Deletion and insertion (Petsiuk et al., 2018): hide the patches that a map ranks first, and see what the model says.

import { facts } from "./data.js";
import { axes, byId, drawPixels, percent, svg } from "./draw.js";
import { hasModel, predict } from "./model.js";
import { replacePatches } from "./pixels.js";
import { DECIDING, curvesBeforehand, mapsNow, state, tokenName } from "./state.js";

const STEPS = Math.min(16, facts.grid ** 2);
const FRAME_MS = 90; // at least, so that one can follow
const BEFOREHAND = `Computed beforehand: for the page’s own images, nothing hidden and the likeliest class, attention (mean of heads) and rollout of ${tokenName(DECIDING)} in the last layer, and Grad-CAM.`;
let playing = 0; // counts the plays: an earlier one stops where a later one has begun

export function drawBelief() {
  const chosen = facts.classes[state.target];
  const tested = mapsNow()[0]?.title ?? "the map above";
  byId("belief-hint").textContent =
    `A map that is true to the model ranks first what the model needs: hide those patches, and “${chosen}” should fall faster than in random order. ` +
    `Tested now: “${tested}”, the first map above. Change its kind, layer, head or token, and try again. `;
  const beforehand = curvesBeforehand("deletion");
  byId("belief-source").textContent = beforehand
    ? `The curves of this map were computed beforehand (8 bits), next to the mean of ${facts.randomOrders} random orders; the picture shows one more.`
    : `${hasModel() ? "The model computes these curves as they play, next to one random order." : "Curves of this map need the model, which does not run here."} ${BEFOREHAND}`;
  for (const id of ["play-deletion", "play-insertion"]) byId(id).disabled = !hasModel() && !beforehand;
}

/** Forget the last curve: it was of another image or map. */
export function clearBelief() {
  playing += 1;
  for (const id of ["belief-map", "belief-random"]) drawPixels(byId(id), state.now);
  drawCurves([[], []]);
  byId("belief-verdict").textContent = "";
}

function drawCurves(curves) {
  const chart = byId("belief-curve");
  const xs = [0, 0.25, 0.5, 0.75, 1];
  const { x, y } = axes(chart, { xs, top: 1, left: (v) => percent(v, 0), bottom: (v) => percent(v, 0), label: "patches changed" });
  curves.forEach((curve, i) => {
    const points = curve.map((share, step) => `${x(step / STEPS)},${y(share)}`).join(" ");
    chart.append(svg("polyline", { points, class: i ? "of-random" : "of-map" }));
  });
  chart.append(svg("text", { x: 300, y: 24, "text-anchor": "end" }, "line: the map · dashes: random"));
}

/** The area under a curve of evenly spaced points, by trapezoids. */
const area = (curve) => curve.slice(1).reduce((sum, value, i) => sum + (value + curve[i]) / 2, 0) / (curve.length - 1);

/** Play one, "deletion" or "insertion", for the class that is chosen; returns {map, random}, the areas. */
export async function play(kind) {
  const mine = ++playing;
  if (!mapsNow().length) return null;
  const [{ values, title }] = mapsNow();
  const { now: pixels, target } = state; // as it is shown, without the patches that are hidden
  const patches = values.length;
  const byMap = Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
  const atRandom = byMap.map((patch) => [Math.random(), patch]).sort((a, b) => a[0] - b[0]).map(([, patch]) => patch);
  const blank = replacePatches(pixels, byMap);
  const [start, source] = kind === "deletion" ? [pixels, null] : [blank, pixels];
  const beforehand = curvesBeforehand(kind);
  const curves = [[], []];
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  for (let step = 0; step <= STEPS; step++) {
    const began = performance.now();
    const count = Math.round((patches * step) / STEPS);
    const images = [byMap, atRandom].map((order) => replacePatches(start, order.slice(0, count), source));
    const shares = beforehand ? [beforehand.map[step], beforehand.random[step]] : await probabilitiesOf(images, target);
    if (mine !== playing) return null;
    shares.forEach((share, i) => curves[i].push(share));
    if (!still || step === STEPS) {
      drawPixels(byId("belief-map"), images[0]);
      drawPixels(byId("belief-random"), images[1]);
      drawCurves(curves);
    }
    const left = still ? 0 : FRAME_MS - (performance.now() - began);
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, left)));
    if (mine !== playing) return null;
  }
  const [map, random] = curves.map(area);
  const orders = beforehand ? `mean of ${facts.randomOrders} random orders` : "one random order";
  byId("belief-verdict").textContent = verdict(kind, title, map, random, orders);
  byId("belief-curve").setAttribute("aria-label", `${kind}: area ${map.toFixed(2)} in the map’s order, ${random.toFixed(2)} in random order`);
  return { map, random };
}

/** The model's probability of a class in each of two images. */
async function probabilitiesOf(images, target) {
  const pair = new Uint8Array(2 * images[0].length);
  pair.set(images[0]);
  pair.set(images[1], images[0].length);
  return (await predict(pair)).map((probabilities) => probabilities[target]);
}

function verdict(kind, title, map, random, orders) {
  const gain = kind === "deletion" ? random - map : map - random;
  const judgement = gain > 0.05 ? "better than chance, on this image" : gain < -0.05 ? "worse than chance, on this image" : "about as good as chance, on this image";
  const good = kind === "deletion" ? "lower" : "higher";
  return `“${title}”: area ${map.toFixed(2)}, ${orders} ${random.toFixed(2)} (${good} is better): ${judgement}.`;
}
