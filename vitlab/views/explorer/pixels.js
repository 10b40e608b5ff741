// From a photo to the pixels that the model takes, as Pillow does it for test.py: the middle square, scaled by
// antialiased bicubic interpolation in 8 bits (Pillow's Resample.c), grey by ITU-R 601.

import { facts } from "./data.js";

const BITS = 22; // of Pillow's fixed-point weights
const STRIPE = 128; // rows that are read at once: a large photo neither fills the memory nor stops the page

function bicubic(x) {
  const a = -0.5;
  const d = Math.abs(x);
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}

/** For each of `size` outputs the first input and the weights of the inputs, of a line from `start` on, `span` long. */
function coefficients(length, start, span, size) {
  const scale = span / size;
  const stretch = Math.max(1, scale);
  return Array.from({ length: size }, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 2 * stretch + 0.5));
    const end = Math.min(length, Math.trunc(centre + 2 * stretch + 0.5));
    const raw = Array.from({ length: end - first }, (_, j) => bicubic((j + first - centre + 0.5) / stretch));
    const sum = raw.reduce((x, y) => x + y, 0);
    return { first, weights: raw.map((weight) => Math.round((weight / sum) * 2 ** BITS)) };
  });
}

const clip = (sum) => Math.min(255, Math.max(0, Math.floor(sum / 2 ** BITS)));

/** Pixels size x size x C of the middle square of a source, an ImageBitmap or a canvas: a share cropPct of its short
 * side. */
export async function squarePixels(source, { size, channels, cropPct } = facts) {
  const { width, height } = source;
  const side = Math.min(width, height) * cropPct;
  const across = coefficients(width, (width - side) / 2, side, size);
  const down = coefficients(height, (height - side) / 2, side, size);
  const bottom = down.at(-1).first + down.at(-1).weights.length;
  const narrow = new Uint8Array(height * size * 3); // each row scaled across
  const canvas = new OffscreenCanvas(width, Math.min(STRIPE, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = down[0].first; top < bottom; top += STRIPE) {
    const rows = Math.min(STRIPE, height - top);
    context.fillStyle = "white"; // under what is transparent
    context.fillRect(0, 0, width, rows);
    context.drawImage(source, 0, top, width, rows, 0, 0, width, rows);
    const { data } = context.getImageData(0, 0, width, rows);
    for (let y = 0; y < rows; y++) {
      for (let x = 0; x < size; x++) {
        const { first, weights } = across[x];
        for (let channel = 0; channel < 3; channel++) {
          let sum = 2 ** (BITS - 1);
          for (let j = 0; j < weights.length; j++) sum += data[4 * (y * width + first + j) + channel] * weights[j];
          narrow[((top + y) * size + x) * 3 + channel] = clip(sum);
        }
      }
    }
    await new Promise((resolve) => setTimeout(resolve));
  }
  const pixels = new Uint8Array(size * size * 3);
  for (let i = 0; i < pixels.length; i++) {
    const [y, rest] = [Math.floor(i / (size * 3)), i % (size * 3)];
    const { first, weights } = down[y];
    let sum = 2 ** (BITS - 1);
    for (let j = 0; j < weights.length; j++) sum += narrow[(first + j) * size * 3 + rest] * weights[j];
    pixels[i] = clip(sum);
  }
  if (channels === 3) return pixels;
  return Uint8Array.from({ length: size * size }, (_, i) => {
    const [r, g, b] = pixels.subarray(3 * i, 3 * i + 3);
    return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
  });
}

/** Pixels S x S x C as an ImageData. */
export function toImageData(pixels) {
  const { size, channels } = facts;
  const image = new ImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * i + channel] = pixels[channels * i + (channels === 3 ? channel : 0)];
    }
    image.data[4 * i + 3] = 255;
  }
  return image;
}

/** A copy of pixels with some patches in the mean colour of the training images or, with a source, in its pixels. */
export function replacePatches(pixels, patches, source = null) {
  const { size, channels, grid, meanColour } = facts;
  const copy = pixels.slice();
  const step = size / grid;
  for (const patch of patches) {
    const [row, column] = [Math.floor(patch / grid), patch % grid];
    for (let y = row * step; y < (row + 1) * step; y++) {
      for (let x = column * step; x < (column + 1) * step; x++) {
        for (let channel = 0; channel < channels; channel++) {
          const place = (y * size + x) * channels + channel;
          copy[place] = source ? source[place] : meanColour[channel];
        }
      }
    }
  }
  return copy;
}
