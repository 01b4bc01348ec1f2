// The views: what the player sees, the truth beside it, where they differ, another lane's future.

import { find, make } from "./elements.js";

const canvases = new Map();

function view(name, caption) {
  if (!canvases.has(name)) {
    const words = make("span");
    const more = make("span", { class: "number" });
    const canvas = make("canvas", { role: "img" });
    const figure = make("figure", { class: "view", "data-view": name },
      canvas, make("figcaption", {}, words, more));
    canvases.set(name, { figure, canvas, words, more });
  }
  const made = canvases.get(name);
  made.words.textContent = caption;
  made.canvas.setAttribute("aria-label", caption);
  made.more.textContent = "";
  return made;
}

function paint(canvas, bitmap) {
  if (canvas.width !== bitmap.width) canvas.width = bitmap.width;
  if (canvas.height !== bitmap.height) canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
}

/** The truth, faded, with the tiles that the dream has otherwise framed. */
function paintDifference(canvas, node, tile) {
  const scale = Math.max(1, Math.floor(448 / node.truth.width));
  canvas.width = node.truth.width * scale;
  canvas.height = node.truth.height * scale;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.globalAlpha = 0.4;
  pen.drawImage(node.truth, 0, 0, canvas.width, canvas.height);
  pen.globalAlpha = 1;
  const columns = Math.floor(node.truth.width / tile);
  const side = tile * scale;
  pen.lineWidth = Math.max(2, side / 12);
  pen.strokeStyle = "#ff5a52";
  for (const index of node.wrong) {
    const [x, y] = [(index % columns) * side, Math.floor(index / columns) * side];
    pen.drawImage(node.view, (index % columns) * tile, Math.floor(index / columns) * tile, tile, tile, x, y, side, side);
    pen.strokeRect(x + pen.lineWidth / 2, y + pen.lineWidth / 2, side - pen.lineWidth, side - pen.lineWidth);
  }
}

/** Shows a frame, and another beside it if one is given. */
export function show(node, tile, other) {
  const shown = [];
  const name = node.world === "real" ? "reality" : "the dream";
  const main = view("view", name);
  paint(main.canvas, node.view);
  if (node.truth) {
    const truth = view("truth", "reality");
    paint(truth.canvas, node.truth);
    const difference = view("difference", "difference");
    paintDifference(difference.canvas, node, tile);
    const tiles = Math.floor(node.truth.width / tile) * Math.floor(node.truth.height / tile);
    difference.more.textContent = `${tiles - node.wrong.length} of ${tiles} tiles agree`;
    shown.push(truth, main, difference);
  } else {
    shown.push(main);
  }
  if (other) {
    const beside = view("other", other.caption);
    paint(beside.canvas, other.node.view);
    shown.push(beside);
  }
  const box = find("views");
  box.classList.toggle("many", shown.length > 1);
  const figures = shown.map((one) => one.figure);
  if (figures.length !== box.children.length || figures.some((f, i) => box.children[i] !== f)) {
    box.replaceChildren(...figures);
  }
}
