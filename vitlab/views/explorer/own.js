// The reader's own images: a photo, or a drawing.

import { facts } from "./data.js";
import { byId, drawPixels } from "./draw.js";
import { squarePixels } from "./pixels.js";

/** Ask whether the middle square of a photo is to be used; then show it. `say` tells the reader something, `showOwn`
 *  shows pixels under a name. */
export async function offerPhoto(file, { say, showOwn }) {
  let photo;
  try {
    photo = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    return say(`${file.name} cannot be read as an image; choose a complete PNG, JPEG, WebP or GIF.`, true);
  }
  const pixels = await squarePixels(photo);
  const side = Math.min(photo.width, photo.height) * facts.cropPct;
  const before = byId("crop-before");
  const scale = 400 / Math.max(photo.width, photo.height);
  [before.width, before.height] = [Math.max(1, photo.width * scale), Math.max(1, photo.height * scale)];
  const context = before.getContext("2d");
  context.drawImage(photo, 0, 0, before.width, before.height);
  context.lineWidth = 4;
  context.strokeStyle = "#d55e00";
  const square = [(photo.width - side) / 2, (photo.height - side) / 2, side, side].map((value) => value * scale);
  context.strokeRect(square[0] + 2, square[1] + 2, square[2] - 4, square[3] - 4);
  drawPixels(byId("crop-after"), pixels);
  byId("crop-size").textContent = `${facts.size} x ${facts.size}`;
  photo.close();
  byId("crop").showModal();
  byId("crop-use").onclick = () => {
    byId("crop").close();
    say(`${file.name} is shown. It stays on this machine.`);
    showOwn(file.name, pixels);
  };
}

const FRAMED = ["mnist", "emnist"]; // sets whose characters fill 20 of 28 pixels

/** The drawing on a black canvas, cut out and centred in a square. */
function cutOut(pad) {
  const { data } = pad.getContext("2d").getImageData(0, 0, pad.width, pad.height);
  let [left, top, right, bottom] = [pad.width, pad.height, 0, 0];
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] < 128) continue;
    const [x, y] = [(i / 4) % pad.width, Math.floor(i / 4 / pad.width)];
    [left, top, right, bottom] = [Math.min(left, x), Math.min(top, y), Math.max(right, x + 1), Math.max(bottom, y + 1)];
  }
  if (right <= left) return pad; // nothing is drawn
  const side = Math.round(Math.max(right - left, bottom - top) * (FRAMED.includes(facts.dataset) ? 28 / 20 : 1));
  const square = new OffscreenCanvas(side, side);
  const context = square.getContext("2d");
  context.fillRect(0, 0, side, side);
  context.drawImage(pad, Math.round((side - left - right) / 2), Math.round((side - top - bottom) / 2));
  return square;
}

/** Let the reader draw, where the model is of grey images. */
export function makeDrawing({ showOwn }) {
  const pad = byId("pad");
  const context = pad.getContext("2d", { willReadFrequently: true });
  const clear = () => {
    context.fillStyle = "#000";
    context.fillRect(0, 0, pad.width, pad.height);
  };
  let last = null;
  const at = (event) => [(event.offsetX * pad.width) / pad.clientWidth, (event.offsetY * pad.height) / pad.clientHeight];
  pad.onpointerdown = (event) => {
    pad.setPointerCapture(event.pointerId);
    last = at(event);
  };
  pad.onpointermove = (event) => {
    if (!last) return;
    Object.assign(context, { strokeStyle: "#fff", lineWidth: pad.width / 8, lineCap: "round" });
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...(last = at(event)));
    context.stroke();
  };
  pad.onpointerup = pad.onpointercancel = () => (last = null);
  byId("draw-start").hidden = facts.channels !== 1;
  byId("draw-start").onclick = () => {
    clear();
    byId("drawing").showModal();
  };
  byId("draw-clear").onclick = clear;
  byId("draw-cancel").onclick = () => byId("drawing").close();
  byId("draw-use").onclick = async () => {
    byId("drawing").close();
    await showOwn("your drawing", await squarePixels(cutOut(pad), { ...facts, cropPct: 1 }));
  };
}
