// The panels: each function draws one from the state.

import { facts } from "./data.js";
import { axes, byId, colour, drawGrid, drawLegend, drawMap, drawPixels, element, percent, place, svg } from "./draw.js";
import { softmax } from "./model.js";
import { DECIDING, KINDS, POOLED, firstPatch, isEvidence, mapsNow, similarityMap, state, tokenMap, tokenName } from "./state.js";

const MOST_CLASSES = 10; // that are listed
export const headName = (head) => (head === "mean" ? "mean of heads" : `head ${head + 1}`);
const layerName = (layer) => (layer === 0 ? "input" : `layer ${layer}`);
const framedPatch = () => (state.token >= firstPatch ? state.token - firstPatch : null);
const times = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ×`;

/** Classes by probability, the likeliest first, at most MOST_CLASSES; always with the true one and the chosen one. */
function listed(probabilities) {
  const order = facts.classes.map((_, i) => i).sort((a, b) => probabilities[b] - probabilities[a]);
  const asked = [state.target, facts.classes.indexOf(state.label)].filter((i) => i >= 0);
  return [...new Set([...order.slice(0, MOST_CLASSES), ...asked])];
}

export function drawImage() {
  drawPixels(byId("image"), state.now);
  byId("image").setAttribute("aria-label", `${state.name}, ${facts.grid} by ${facts.grid} patches, ${state.hidden.size} hidden`);
  byId("restore").disabled = !state.hidden.size;
}

export function drawPointer() {
  drawGrid(byId("grid"), framedPatch(), state.hidden);
  for (const button of byId("tokens").children) {
    const chosen = Number(button.dataset.token) === state.token;
    button.setAttribute("aria-pressed", chosen);
    button.classList.toggle("primary", chosen);
  }
  const patch = framedPatch();
  byId("hide").disabled = patch === null;
  byId("hide").textContent = patch !== null && state.hidden.has(patch) ? "Show this patch" : "Hide this patch";
}

/** The large maps, with the sentence below them. */
export function drawMaps() {
  const maps = mapsNow();
  const holder = byId("maps");
  holder.classList.toggle("single", maps.length < 2);
  if (holder.children.length !== maps.length) {
    const figures = maps.map(() => {
      const stack = element("div", { class: "stack" }, element("canvas", { role: "img" }), svg("svg", { "aria-hidden": "true" }));
      return element("figure", {}, element("figcaption"), stack);
    });
    holder.replaceChildren(...figures);
  }
  maps.forEach(({ title, values, all, scale }, i) => {
    const figure = holder.children[i];
    const [canvas, overlay] = figure.lastChild.children;
    figure.firstChild.textContent = title;
    drawMap(canvas, values, scale, state.over ? state.now : null);
    drawGrid(overlay, framedPatch());
    const best = values.reduce((top, value, j) => (value > values[top] ? j : top), 0);
    canvas.setAttribute("aria-label", `${title}: most at ${tokenName(best + firstPatch)}, ${values[best].toFixed(2)} ${scale.unit}`);
    figure.dataset.best = best;
  });
  if (maps.length) drawLegend(byId("legend"), maps[0].scale);
  byId("sentence").textContent = sentence(maps);
}

/** What the maps say, in words. */
function sentence(maps) {
  const { kind, token, layer, head } = state;
  if (!maps.length) return isEvidence(kind) ? "Computing the evidence for this class …" : "";
  const { values, all, scale } = maps[0];
  const best = values.reduce((top, value, j) => (value > values[top] ? j : top), 0);
  const where = tokenName(best + firstPatch);
  if (isEvidence(kind)) {
    return values[best] > 0 ? `${maps[0].title}: most at ${where}, ${times(values[best])} the mean.` : `${maps[0].title}: none.`;
  }
  if (kind === "similarity") {
    const others = Array.from(values).sort((a, b) => b - a);
    return `${layer ? `After layer ${layer}` : "Before the first layer"} the patch most like it has cosine ${others[1].toFixed(2)}, the least like it ${others.at(-1).toFixed(2)}.`;
  }
  const place = kind === "rollout" ? `Up to layer ${layer}` : `Layer ${layer}, ${headName(head)}`;
  const cls = facts.hasCls ? `; CLS gets ${times(all[0])}` : "";
  return `${place}: ${tokenName(token)} ${kind === "rollout" ? "draws most on" : "looks most at"} ${where}, ${times(values[best])} an equal share${cls}.`;
}

/** Tell the value of one patch in the first or second map. */
export function showValue(patch, which) {
  const { title, values, scale } = mapsNow()[which];
  byId("sentence").textContent = `${title}: row ${Math.floor(patch / facts.grid) + 1}, column ${(patch % facts.grid) + 1}: ${values[patch].toFixed(2)} ${scale.unit}.`;
}

/** One small map for each layer. */
export function drawFilm(choose) {
  const { kind, head, token, inside } = state;
  byId("film-row").hidden = isEvidence(kind);
  if (isEvidence(kind)) return;
  const first = kind === "similarity" ? 0 : 1;
  const layers = Array.from({ length: facts.layers + 1 - first }, (_, i) => i + first);
  fillButtons(byId("film"), layers.map((layer) => ({ text: layerName(layer), chosen: layer === state.layer, click: () => choose({ layer }) })));
  layers.forEach((layer, i) => {
    const values = kind === "similarity" ? similarityMap(inside, layer, token) : tokenMap(inside, { kind, layer, head, token }).subarray(firstPatch);
    drawMap(byId("film").children[i].firstChild, values, kind === "similarity" ? facts.scales.cosine : facts.scales.uniform);
  });
}

/** Buttons with a small canvas each; they are made anew only where their number changes. */
function fillButtons(holder, buttons) {
  if (holder.children.length !== buttons.length) {
    holder.replaceChildren(...buttons.map(() => element("button", {}, element("canvas", { "aria-hidden": "true" }), element("span"))));
  }
  buttons.forEach(({ text, chosen, click }, i) => {
    const button = holder.children[i];
    button.lastChild.textContent = text;
    button.setAttribute("aria-pressed", chosen);
    button.onclick = click;
  });
}

/** Heads by layers, as small maps of the token that is pointed at. */
export function drawHeads(choose) {
  const { layers, heads } = facts;
  const holder = byId("heads");
  if (!holder.children.length) {
    holder.style.gridTemplateColumns = `repeat(${layers + 1}, max-content)`;
    holder.append(element("span"), ...Array.from({ length: layers }, (_, i) => element("span", {}, `layer ${i + 1}`)));
    for (let head = 0; head < heads; head++) {
      holder.append(element("span", {}, `head ${head + 1}`));
      for (let layer = 1; layer <= layers; layer++) {
        const button = element("button", { "data-layer": layer, "data-head": head }, element("canvas", { "aria-hidden": "true" }));
        button.onclick = () => choose({ kind: "attention", layer, head });
        holder.append(button);
      }
    }
  }
  byId("heads-hint").textContent = `What ${tokenName(state.token)} looks at, in every head. Click on one to see it large.`;
  for (const button of holder.querySelectorAll("button")) {
    const [layer, head] = [Number(button.dataset.layer), Number(button.dataset.head)];
    const values = tokenMap(state.inside, { kind: "attention", layer, head, token: state.token }).subarray(firstPatch);
    drawMap(button.firstChild, values, facts.scales.uniform);
    const at = (layer - 1) * heads + head;
    const [far, wide] = [state.inside.distance[at], state.inside.entropy[at]];
    button.setAttribute("aria-label", `layer ${layer}, head ${head + 1}: looks ${far.toFixed(1)} patches far, entropy ${wide.toFixed(2)}`);
    button.title = `looks ${far.toFixed(1)} patches far, entropy ${wide.toFixed(2)}`;
    button.setAttribute("aria-pressed", state.kind === "attention" && layer === state.layer && head === state.head);
  }
}

/** Distance and entropy of every head by layer: as dots the means over the page's images, as Dosovitskiy et al.,
 *  figure 7, average; as rings those of the image shown. */
export function drawHeadCharts(choose) {
  const changed = state.hidden.size ? ", with what is hidden" : "";
  byId("charts-hint").textContent = `Dots: mean over the ${facts.images.length} images that came with the page. Rings: the image shown${changed}.`;
  const xs = Array.from({ length: facts.layers }, (_, i) => i + 1);
  const far = Math.ceil(Math.max(...state.inside.distance, ...facts.means.distance, 1));
  for (const [id, top] of [["distance", far], ["entropy", 1]]) {
    const values = facts.means[id];
    const chart = byId(id);
    const { x, y } = axes(chart, { xs, top, left: (v) => v.toFixed(1), bottom: String, label: "layer" });
    values.forEach((value, at) => {
      const [layer, head] = [Math.floor(at / facts.heads) + 1, at % facts.heads];
      const now = layer === state.layer && head === state.head;
      const dot = svg("circle", { cx: x(layer), cy: y(value), r: now ? 5 : 3.5, class: now ? "dot now" : "dot" });
      const here = state.inside[id][at];
      dot.append(svg("title", {}, `layer ${layer}, head ${head + 1}: mean ${value.toFixed(2)}, this image ${here.toFixed(2)}`));
      dot.addEventListener("click", () => choose({ kind: "attention", layer, head }));
      chart.append(dot, svg("circle", { cx: x(layer), cy: y(here), r: now ? 7 : 5, class: now ? "ring now" : "ring" }));
    });
    const low = Math.min(...values).toFixed(2);
    chart.setAttribute("aria-label", `${id} of ${values.length} heads by layer, mean over ${facts.images.length} images, from ${low} to ${Math.max(...values).toFixed(2)}`);
  }
}

/** Class probabilities as bars; a mark where they stood with nothing hidden. */
export function drawClasses(choose) {
  const { probabilities, before, target, label } = state;
  const order = listed(before);
  const focused = document.activeElement?.closest?.(".bar")?.dataset.target;
  const bars = order.map((i) => {
    const fill = element("span", { class: "fill" });
    fill.style.width = `${100 * probabilities[i]}%`;
    const track = element("span", { class: "track" }, fill);
    if (state.hidden.size) {
      const mark = element("span", { class: "before" });
      mark.style.left = `min(${100 * before[i]}%, calc(100% - 3px))`;
      track.append(mark);
    }
    const name = element("span", { class: "name", title: facts.classes[i] }, `${facts.classes[i]}${facts.classes[i] === label ? " ✓" : ""}`);
    const share = element("span", { class: "share" }, percent(probabilities[i]));
    const bar = { role: "radio", class: "bar", "data-target": i, "aria-checked": i === target, tabindex: i === target ? 0 : -1 };
    const text = `${facts.classes[i]}: ${percent(probabilities[i])}${facts.classes[i] === label ? ", the true class" : ""}`;
    return element("button", { ...bar, "aria-label": text, onclick: () => choose({ target: i }) }, name, track, share);
  });
  byId("bars").replaceChildren(...bars);
  if (focused !== undefined) bars.find((bar) => bar.dataset.target === focused)?.focus();
  const best = probabilities.indexOf(Math.max(...probabilities));
  const truth = label === null ? "" : facts.classes[best] === label ? " That is right." : ` It is: ${label}.`;
  const gone = state.hidden.size ? ` With ${state.hidden.size} of ${facts.grid ** 2} patches hidden; marks show the probabilities before.` : "";
  byId("verdict").textContent = `${facts.classes[best]}, ${percent(probabilities[best])}.${truth}${gone}`;
}

/** The logit lens: classes by layers. */
export function drawLens(choose) {
  const { inside, before } = state;
  const count = facts.classes.length;
  const columns = Array.from({ length: facts.layers + 1 }, (_, layer) => softmax(inside.lens.subarray(layer * count, (layer + 1) * count)));
  const leaders = columns.map((shares) => shares.indexOf(Math.max(...shares)));
  const rows = [...new Set([...listed(before).slice(0, 4), ...leaders])].slice(0, 7);
  const head = columns.map((_, layer) => {
    const button = element("button", { "aria-pressed": layer === state.layer, "aria-label": layerName(layer) }, layer === 0 ? "in" : String(layer));
    button.onclick = () => choose(layer || state.kind === "similarity" ? { layer } : { kind: "similarity", layer });
    return element("th", { scope: "col" }, button);
  });
  const scale = { ...facts.scales.cosine, low: 0, limit: 1 };
  const body = rows.map((i) => {
    const cells = columns.map((shares, layer) => {
      const cell = element("td", {}, (100 * shares[i]).toFixed(0));
      const at = 0.08 + 0.92 * place(shares[i], scale);
      cell.style.background = `rgb(${colour(at, scale).join(" ")})`;
      cell.style.color = at > 0.6 ? "#111" : "#fff";
      if (leaders[layer] === i) cell.style.fontWeight = "700";
      return cell;
    });
    return element("tr", {}, element("th", { scope: "row", title: facts.classes[i] }, facts.classes[i]), ...cells);
  });
  const corner = element("th", { scope: "col" }, "%");
  byId("lens").replaceChildren(element("thead", {}, element("tr", {}, corner, ...head)), element("tbody", {}, ...body));
}

/** Sliders and tabs. */
export function drawControls() {
  const { kind, layer, head } = state;
  for (const button of byId("kinds").children) {
    button.setAttribute("aria-checked", button.dataset.kind === kind);
    button.tabIndex = button.dataset.kind === kind ? 0 : -1;
  }
  byId("kind-hint").textContent = KINDS[kind].hint;
  byId("layer-row").hidden = isEvidence(kind);
  byId("head-row").hidden = kind !== "attention";
  Object.assign(byId("layer"), { min: kind === "similarity" ? 0 : 1, max: facts.layers, value: layer });
  byId("layer-text").textContent = layer === 0 ? "input" : `${layer} of ${facts.layers}`;
  byId("layer").setAttribute("aria-valuetext", layerName(layer));
  Object.assign(byId("head"), { max: facts.heads, value: head === "mean" ? facts.heads : head });
  byId("head-text").textContent = head === "mean" ? "mean" : `${head + 1} of ${facts.heads}`;
  byId("head").setAttribute("aria-valuetext", headName(head));
  byId("over").checked = state.over;
}

/** The tokens that are no patch, as buttons: CLS, and the pooled one where that is another. */
export function makeTokens(choose) {
  const tokens = [...(facts.hasCls ? [0] : []), ...(DECIDING === POOLED ? [POOLED] : [])];
  const buttons = tokens.map((token) => {
    const text = token === DECIDING ? `${tokenName(token)} (what the head reads)` : tokenName(token);
    return element("button", { "data-token": token, onclick: () => choose({ token }) }, text);
  });
  byId("tokens").replaceChildren(...buttons);
}
