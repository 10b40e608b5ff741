// The page: what happens when something is touched.

import { facts, readImages } from "./data.js";
import { byId, drawPixels, element } from "./draw.js";
import { clearBelief, drawBelief, play } from "./belief.js";
import { findEvidence, hasModel, idle, lookInside, predict, softmax, startModel } from "./model.js";
import { makeDrawing, offerPhoto } from "./own.js";
import { replacePatches } from "./pixels.js";
import { drawClasses, drawControls, drawFilm, drawHeadCharts, drawHeads, drawImage, drawLens, drawMaps, drawPointer, makeTokens, showValue } from "./panels.js";
import { DECIDING, KINDS, firstPatch, isEvidence, state } from "./state.js";
import { makeTour } from "./tour.js";

const images = []; // those of the page, then the reader's own
const QUIET_MS = 250; // without a new request, before all is computed: it holds the page for longer than a click may take
let request = 0; // counts the changes of pixels: answers to earlier ones are dropped

function say(text, wrong = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("wrong", wrong);
}

// ---------------------------------------------------------------------------------------- drawing

const dirty = new Set();
const DRAWERS = {
  image: drawImage,
  pointer: drawPointer,
  controls: drawControls,
  maps: drawMaps,
  film: () => drawFilm(choose),
  heads: () => drawHeads(choose),
  charts: () => drawHeadCharts(choose),
  classes: () => drawClasses(choose),
  lens: () => drawLens(choose),
  belief: drawBelief,
};

/** Draw parts of the page with the next frame, each once. */
function redraw(...parts) {
  if (!dirty.size) requestAnimationFrame(drawNow);
  parts.forEach((part) => dirty.add(part));
}

function drawNow() {
  const parts = Object.keys(DRAWERS).filter((name) => dirty.has(name));
  dirty.clear();
  if (state.inside) parts.forEach((name) => DRAWERS[name]());
}

const redrawAll = () => redraw(...Object.keys(DRAWERS));

/** Change what is shown: token, layer, head, kind, target, over. */
function choose(change) {
  const changed = Object.keys(change).filter((key) => state[key] !== change[key]);
  if (!changed.length) return;
  Object.assign(state, change);
  if (state.kind !== "similarity" && state.layer === 0) state.layer = 1;
  if (state.kind === "similarity" && state.token < firstPatch) state.token = firstPatch + Math.floor(facts.grid ** 2 / 2);
  if (changed.every((key) => key === "token")) redraw("pointer", "maps", "film", "heads", "belief");
  else redraw("pointer", "controls", "maps", "film", "heads", "charts", "classes", "lens", "belief");
  if (changed.some((key) => key !== "over" && key !== "token")) clearBelief();
  needEvidence();
}

/** Compute the evidence that the map needs, if it is not there yet. */
async function needEvidence() {
  const { inside, target, now } = state;
  if (!isEvidence(state.kind) || inside.evidence.has(target)) return;
  if (!hasModel()) return say("Evidence for this class needs the model, which does not run here.", true);
  inside.evidence.set(target, await findEvidence(now, target));
  if (inside === state.inside) redraw("maps");
}

// ----------------------------------------------------------------------------------------- images

/** Show one of the images; resolves when the numbers of the page are its own. */
async function show(index) {
  if (!images[index]) throw new RangeError(`image ${index}: there are 0 to ${images.length - 1}`);
  const { name, label, pixels, inside, curves = null } = images[index];
  const probabilities = inside ? softmax(inside.logits) : null;
  Object.assign(state, { name, label, pixels, curves, hidden: new Set(), index });
  Array.from(byId("thumbs").children).forEach((thumb, i) => thumb.setAttribute("aria-pressed", i === index));
  await compute(inside, probabilities);
}

/** Fill the state for the pixels with what is hidden: at first from what is known, then by the model. */
async function compute(known = null, probabilities = null) {
  const mine = ++request;
  const now = state.hidden.size ? replacePatches(state.pixels, state.hidden) : state.pixels;
  const fresh = !state.hidden.size;
  if (known) setNumbers(now, known, probabilities, fresh);
  if (!hasModel()) return;
  await idle();
  if (mine !== request) return;
  if (!fresh) {
    const [answer] = await predict(now); // the bars first: it takes a fifth of the time
    if (mine !== request) return;
    Object.assign(state, { now, probabilities: answer });
    for (const part of ["image", "classes"]) DRAWERS[part]();
  }
  if (known || !fresh) await new Promise((done) => setTimeout(done, QUIET_MS));
  if (mine !== request) return;
  const inside = await lookInside(now);
  if (mine === request) setNumbers(now, { ...inside, evidence: known?.evidence ?? inside.evidence }, softmax(inside.logits), fresh);
}

function setNumbers(now, inside, probabilities, fresh) {
  Object.assign(state, { now, inside, probabilities });
  if (fresh) state.before = probabilities;
  if (fresh && state.targetOf !== state.pixels) {
    state.target = probabilities.indexOf(Math.max(...probabilities));
    state.targetOf = state.pixels;
  }
  clearBelief();
  redrawAll();
  needEvidence();
}

function addImage(image) {
  const index = images.push(image) - 1;
  const canvas = element("canvas", { "aria-hidden": "true" });
  drawPixels(canvas, image.pixels);
  const text = image.label === null ? image.name : `${image.name}: ${image.label}`;
  const thumb = element("button", { class: "thumb", "aria-label": text, title: text, "aria-pressed": "false" }, canvas);
  thumb.onclick = () => show(index);
  byId("thumbs").append(thumb);
  return index;
}

const forOwn = { say, showOwn: (name, pixels) => show(addImage({ name, label: null, pixels, inside: null })) };

async function toggleHidden(patch) {
  if (!hasModel()) return say("To hide patches the model must run, and it does not run here.", true);
  const hidden = new Set(state.hidden);
  if (!hidden.delete(patch)) hidden.add(patch);
  state.hidden = hidden;
  redraw("pointer");
  await compute();
}

async function restore() {
  state.hidden = new Set();
  await compute();
}

// ----------------------------------------------------------------------------------- what is touched

/** The patch below the pointer, in the image or a map; null outside. */
const patchAt = (event, box = byId("stage")) => {
  const { left, top, width, height } = box.getBoundingClientRect();
  const [x, y] = [(event.clientX - left) / width, (event.clientY - top) / height].map((share) => Math.floor(share * facts.grid));
  return x < 0 || y < 0 || x >= facts.grid || y >= facts.grid ? null : y * facts.grid + x;
};

function step(name, by, low, high) {
  const value = name === "head" && state.head === "mean" ? facts.heads : state[name];
  const next = Math.min(high, Math.max(low, value + by));
  choose({ [name]: name === "head" && next === facts.heads ? "mean" : next });
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  const lowest = state.kind === "similarity" ? 0 : 1;
  if (key === "l" || key === "k") step("layer", key === "l" ? 1 : -1, lowest, facts.layers);
  else if (key === "h" || key === "g") step("head", key === "h" ? 1 : -1, 0, facts.heads);
  else if (key === "c") choose({ token: DECIDING });
  else if (event.target === byId("stage")) onStageKey(event);
}

function onStageKey(event) {
  const { grid } = facts;
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const patch = state.token - firstPatch;
  if (event.key === " " || event.key === "Enter") {
    if (patch >= 0) toggleHidden(patch);
  } else if (moves[event.key]) {
    const [down, right] = patch < 0 ? [0, 0] : moves[event.key];
    const from = Math.max(0, patch);
    const inside = (value) => Math.min(grid - 1, Math.max(0, value));
    choose({ token: firstPatch + inside(Math.floor(from / grid) + down) * grid + inside((from % grid) + right) });
  } else return;
  event.preventDefault();
}

/** Arrow keys move within a group of radio buttons. */
function onRadioKey(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const buttons = Array.from(event.currentTarget.children);
  const at = buttons.indexOf(event.target);
  if (!by || at < 0) return;
  event.preventDefault();
  const next = buttons[(at + by + buttons.length) % buttons.length];
  next.focus();
  next.click();
}

function listen() {
  const stage = byId("stage");
  stage.addEventListener("pointermove", (event) => {
    const patch = patchAt(event);
    if (patch !== null && event.pointerType === "mouse") choose({ token: firstPatch + patch });
  });
  byId("maps").addEventListener("pointermove", (event) => {
    const patch = event.target.closest(".stack") && patchAt(event, event.target.closest(".stack"));
    if (Number.isInteger(patch)) showValue(patch, Array.from(byId("maps").children).indexOf(event.target.closest("figure")));
  });
  let touch = false;
  stage.addEventListener("pointerdown", (event) => (touch = event.pointerType !== "mouse"));
  stage.addEventListener("click", (event) => {
    const patch = patchAt(event);
    if (patch === null || event.detail === 0) return;
    choose({ token: firstPatch + patch });
    if (!touch) toggleHidden(patch); // a finger has the button below
  });
  document.addEventListener("keydown", onKey);
  byId("hide").onclick = () => toggleHidden(state.token - firstPatch);
  byId("restore").onclick = restore;
  byId("layer").oninput = (event) => choose({ layer: Number(event.target.value) });
  byId("head").oninput = ({ target }) => choose({ head: Number(target.value) === facts.heads ? "mean" : Number(target.value) });
  byId("over").onchange = (event) => choose({ over: event.target.checked });
  byId("play-deletion").onclick = () => play("deletion");
  byId("play-insertion").onclick = () => play("insertion");
  for (const [kind, { title }] of Object.entries(KINDS)) {
    byId("kinds").append(element("button", { role: "radio", class: "choice", "data-kind": kind, onclick: () => choose({ kind }) }, title));
  }
  for (const id of ["kinds", "bars"]) byId(id).addEventListener("keydown", onRadioKey);
  byId("photo").onchange = ({ target }) => {
    if (target.files.length) offerPhoto(target.files[0], forOwn);
    target.value = "";
  };
  byId("crop-cancel").onclick = () => byId("crop").close();
  for (const kind of ["dragenter", "dragover"]) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.add("dragging");
    });
  }
  addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    const [file] = event.dataTransfer.files;
    if (!file) return;
    if (hasModel()) offerPhoto(file, forOwn);
    else say("Your own photo needs the model, which does not run here.", true);
  });
}

function makeTheme() {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const name = () => (byId("theme").textContent = dark() ? "Light" : "Dark");
  byId("theme").onclick = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
  };
  name();
}

// ------------------------------------------------------------------------------------------- start

async function start() {
  const { name, dataset, layers, heads, grid, classes } = facts;
  const cls = facts.hasCls ? " and CLS" : "";
  byId("about").textContent = `${name}: ${layers} layers of ${heads} heads look at ${grid} x ${grid} patches${cls}, to choose among ${classes.length} classes${dataset ? ` of ${dataset}` : ""}.`;
  makeTheme();
  makeTokens(choose);
  listen();
  makeTour(choose);
  makeDrawing(forOwn);
  say("Reading the images …");
  (await readImages()).forEach(addImage);
  await show(0);
  say("The images are ready. The model is starting …");
}

async function startOrSay() {
  for (const id of ["photo", "draw-start"]) byId(id).disabled = true;
  try {
    await startModel();
  } catch (error) {
    say(`The model cannot run in this browser (${error.message}). Everything computed beforehand works: ${images.length} images, all layers and heads.`, true);
    byId("photo-label").hidden = true;
    byId("draw-start").hidden = true;
    return false;
  }
  for (const id of ["photo", "draw-start"]) byId(id).disabled = false;
  say("The model runs in this page: hide patches, or drop in a photo of your own.");
  await show(state.index);
  return true;
}

const started = start();

/** For tests and the curious. */
window.vit = {
  /** Resolves to true when the model runs, or to false where it cannot. */
  ready: started.then(startOrSay),
  classes: facts.classes,
  /** Class probabilities of pixels, Uint8Array S x S x C, row by row. */
  predict: async (pixels) => (await predict(pixels))[0],
  /** The attention of the image that is shown, of a layer from 0 and a head from 0: Float32Array N x N. */
  attention(layer, head) {
    const square = facts.tokens ** 2;
    const from = (layer * facts.heads + head) * square;
    if (!(layer >= 0 && layer < facts.layers && head >= 0 && head < facts.heads)) throw new RangeError(`layer ${layer}, head ${head}`);
    return state.inside.attention.slice(from, from + square);
  },
  /** Show an image by its place in the strip. */
  show: (index) => show(index),
};
