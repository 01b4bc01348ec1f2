// What the model thinks at a frame: its next action, what it reads between two frames, outcomes.

import { make } from "./elements.js";

function bars(pairs) {
  const rows = pairs.flatMap(([name, chance]) => {
    const bar = make("i");
    bar.style.setProperty("--p", `${(100 * chance).toFixed(1)}%`);
    const percent = chance > 0.9995 ? "100 %" : `${(100 * chance).toFixed(1)} %`;
    return [make("span", { title: name }, name), bar, make("span", {}, percent)];
  });
  return make("div", { class: "bars" }, ...rows);
}

export function showMind(box, mind, node) {
  const parts = [
    make("h3", {}, make("span", {}, "Next action"), make("span", {}, `${mind.entropy.toFixed(2)} bits`)),
    bars(mind.actions.slice(0, 7)),
  ];
  if (mind.inverse.length) {
    parts.push(make("h3", {}, "Read between the last two frames"), bars(mind.inverse.slice(0, 3)));
  }
  if (node.chances) parts.push(make("h3", {}, "Outcome"), bars(Object.entries(node.chances)));
  box.classList.remove("quiet");
  box.replaceChildren(...parts);
}

export function noMind(box, words) {
  box.classList.add("quiet");
  box.replaceChildren(words);
}
