// A tour of seven steps over the same page. Its words are those of demos/vit_tutorial.ipynb.

import { facts } from "./data.js";
import { byId, element } from "./draw.js";
import { DECIDING, firstPatch } from "./state.js";

const { size, channels, grid, tokens, width, layers, heads, classes, stem, hasCls } = facts;
const middle = firstPatch + Math.floor(grid / 2) * grid + Math.floor(grid / 2);
const head = facts.head === "mlp" ? "two linear layers with a tanh between them" : "a single linear layer";
const reader = facts.pool === "cls" ? "CLS" : facts.pooled;

const STEPS = [
  {
    title: "An image",
    panel: "panel-image",
    change: { token: middle, kind: "attention" },
    text: [`An image is a block of numbers, here ${size} x ${size} pixels with ${channels === 1 ? "one channel" : `${channels} channels`}. Choose another one above at any time; the tour goes on with it.`],
  },
  {
    title: "Patches",
    panel: "panel-image",
    change: { token: firstPatch, kind: "attention" },
    text: [
      `A Transformer reads a list of vectors, not an image. So the image is cut into ${grid} x ${grid} patches, and each becomes a token of ${width} values.`,
      stem === "linear"
        ? "One matrix, the same for all patches, turns a patch’s pixels into its token."
        : "Here a few convolutions do it, so a token has seen a little of its neighbours as well.",
    ],
  },
  {
    title: "Embedding and positions",
    panel: "panel-maps",
    change: { token: middle, kind: "similarity", layer: 0 },
    text: [
      ...(hasCls ? ["One more token goes in front, CLS. It does not come from the image: it is a vector that is learned, the same for every image, and its job is to collect what the other tokens know."] : []),
      "Then every token gets a position embedding added. The map shows which tokens are like that of the framed patch before the first layer: those of like pixels, and those nearby.",
    ],
  },
  {
    title: "One attention head",
    panel: "panel-maps",
    change: { token: middle, kind: "attention", layer: 1, head: 0 },
    text: [
      "Now the tokens exchange what they know. Each token makes a query (what am I looking for?), a key (what do I have?) and a value (what do I pass on?). Each query is compared with each key; a softmax turns the scores into shares, and the head gives each token the mean of all values in these shares.",
      "Left: the shares of the framed patch. Right: which patches look at it. Move over the image.",
    ],
  },
  {
    title: "Layers",
    panel: "panel-heads",
    change: { token: middle, kind: "attention", layer: layers, head: "mean" },
    text: [`One softmax can hardly attend to several things at once. So there are ${heads} heads side by side, and ${layers} layers one after the other. Look at single heads: no two look at the same. Some look nearby, some everywhere.`],
  },
  {
    title: `${reader} and the decision`,
    panel: "panel-classes",
    change: { token: DECIDING, kind: "attention", layer: layers, head: "mean" },
    text: [
      facts.pool === "cls"
        ? `After the last layer everything but CLS is dropped. A last norm and the head, ${head}, turn CLS into one number for each of the ${classes.length} classes.`
        : `After the last layer the tokens are pooled into one. A norm and the head, ${head}, turn it into one number for each of the ${classes.length} classes.`,
      "The softmax of these gives a probability to each class. The table shows how the answer forms from layer to layer. Hide a patch, by a click on the image, and see the bars move.",
    ],
  },
  {
    title: "What attention is not",
    panel: "panel-belief",
    change: { token: DECIDING, kind: "attention", layer: layers, head: "mean" },
    text: [
      "Read such maps with care: they are of one layer, and by then each token holds something of all the others. A bright patch is one that is read, not yet one that decides.",
      "Whether a map is true to the model can be tested: hide its brightest patches first. If the answer falls no faster than in random order, the map is pretty and no more.",
    ],
  },
];

let step = -1;

/** Make the buttons work; `change` sets the state of the page. */
export function makeTour(change) {
  const go = (to) => {
    document.querySelectorAll("section.lit").forEach((section) => section.classList.remove("lit"));
    step = to;
    byId("tour").hidden = step < 0 || step >= STEPS.length;
    if (byId("tour").hidden) {
      step = -1;
      byId("tour-start").focus();
      return;
    }
    const { title, panel, text, change: wanted } = STEPS[step];
    change(wanted);
    byId(panel).classList.add("lit");
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    byId(panel).scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
    byId("tour-step").textContent = `Step ${step + 1} of ${STEPS.length}`;
    byId("tour-title").textContent = title;
    byId("tour-text").replaceChildren(...text.map((words) => element("p", {}, words)));
    byId("tour-back").disabled = step === 0;
    byId("tour-next").textContent = step === STEPS.length - 1 ? "Finish" : "Next";
    byId("tour-title").focus({ preventScroll: true });
  };
  byId("tour-start").onclick = () => go(0);
  byId("tour-next").onclick = () => go(step + 1);
  byId("tour-back").onclick = () => go(step - 1);
  byId("tour-end").onclick = () => go(-1);
  byId("tour").addEventListener("keydown", (event) => event.key === "Escape" && go(-1));
}
