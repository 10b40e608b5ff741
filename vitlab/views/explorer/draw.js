// Small helpers that draw: elements, canvases of patches, grids, charts.

import { facts } from "./data.js";
import { toImageData } from "./pixels.js";

export const byId = (id) => document.getElementById(id);
export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

/** An element with properties, attributes (`aria-…`, `data-…`, `class`, `role`, …) and children; text stays text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** Where a value is on a scale, from 0 to 1 (pictures/tiles.py: Scale.place). */
export function place(value, { low, limit }) {
  const at = low === null ? Math.log(Math.max(value, 1e-9)) / Math.log(limit) / 2 + 0.5 : (value - low) / (limit - low);
  return Math.min(1, Math.max(0, at));
}

export const colour = (value, scale) => scale.colours[Math.round(255 * place(value, scale))];

/** Draw P values as G x G patches in the scale's colours, or as brightness over pixels S x S x C. */
export function drawMap(canvas, values, scale, over = null) {
  const { grid, size } = facts;
  const side = over ? size : grid;
  if (canvas.width !== side) [canvas.width, canvas.height] = [side, side];
  const image = over ? toImageData(over) : new ImageData(grid, grid);
  for (let i = 0; i < side * side; i++) {
    const [y, x] = [Math.floor(i / side), i % side];
    const patch = over ? Math.floor((y * grid) / size) * grid + Math.floor((x * grid) / size) : i;
    if (over) {
      const light = 0.12 + 0.88 * place(values[patch], scale);
      for (let channel = 0; channel < 3; channel++) image.data[4 * i + channel] *= light;
    } else {
      image.data.set(colour(values[patch], scale), 4 * i);
      image.data[4 * i + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

export function drawPixels(canvas, pixels) {
  [canvas.width, canvas.height] = [facts.size, facts.size];
  canvas.getContext("2d").putImageData(toImageData(pixels), 0, 0);
}

/** Lines between patches, crosses on hidden ones, and a frame around one (or none: null), into an SVG. */
export function drawGrid(target, framed, hidden = new Set()) {
  const { grid } = facts;
  target.setAttribute("viewBox", `0 0 ${grid} ${grid}`);
  const lines = Array.from({ length: grid - 1 }, (_, i) => `M${i + 1} 0V${grid}M0 ${i + 1}H${grid}`).join("");
  const parts = [svg("path", { d: lines, class: "lines" })];
  for (const patch of hidden) {
    const [y, x] = [Math.floor(patch / grid), patch % grid];
    parts.push(svg("path", { d: `M${x + 0.3} ${y + 0.3}l.4 .4m0 -.4l-.4 .4`, class: "gone" }));
  }
  if (framed !== null && framed >= 0) {
    const box = { x: framed % grid, y: Math.floor(framed / grid), width: 1, height: 1 };
    parts.push(svg("rect", { ...box, class: "cell under" }), svg("rect", { ...box, class: "cell" }));
  }
  target.replaceChildren(...parts);
}

export function drawLegend(target, scale) {
  const canvas = element("canvas", { width: 256, height: 1, role: "img", "aria-label": `colours from ${scale.ticks[0]} to ${scale.ticks[4]} ${scale.unit}` });
  const image = new ImageData(256, 1);
  scale.colours.forEach((rgb, i) => image.data.set([...rgb, 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  const ticks = scale.ticks.map((tick) => element("span", {}, tick));
  target.replaceChildren(canvas, element("div", {}, ...ticks), element("div", {}, `${scale.unit}${scale.grey ? `; grey: ${scale.grey}` : ""}`));
}

/** Axes of a chart: returns functions from values to places. */
export function axes(target, { xs, top, left, bottom, label }) {
  target.setAttribute("viewBox", "-8 0 338 182");
  target.replaceChildren();
  const x = (value) => 40 + ((value - xs[0]) / (xs.at(-1) - xs[0] || 1)) * 265;
  const y = (value) => 150 - (value / top) * 135;
  for (const share of [0, 0.5, 1]) {
    const at = y(top * share);
    target.append(svg("path", { d: `M36 ${at}H308`, class: "axis" }), svg("text", { x: 32, y: at + 4, "text-anchor": "end" }, left(top * share)));
  }
  for (const value of xs) target.append(svg("text", { x: x(value), y: 164, "text-anchor": "middle" }, bottom(value)));
  target.append(svg("text", { x: 172, y: 178, "text-anchor": "middle" }, label));
  return { x, y };
}
