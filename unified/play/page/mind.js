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

/** @param denoise asks for the denoise steps of the frame; null where it was not drawn */
export function showMind(box, mind, node, denoise) {
  const parts = [
    make("h3", {}, make("span", {}, "Next action"), make("span", {}, `${mind.entropy.toFixed(2)} bits`)),
    bars(mind.actions.slice(0, 7)),
  ];
  if (mind.inverse.length) {
    parts.push(make("h3", {}, "Read between the last two frames"), bars(mind.inverse.slice(0, 3)));
  }
  if (node.chances) parts.push(make("h3", {}, "Outcome"), bars(Object.entries(node.chances)));
  if (denoise) {
    const strip = make("div", { class: "steps" });
    const button = make("button", { type: "button", onclick: async () => {
      const answer = await denoise();
      if (!answer) return;
      strip.replaceChildren(...Object.entries(answer.blobs).map(([step, blob]) => {
        const url = URL.createObjectURL(blob);
        return make("img", { src: url, alt: `after denoise step ${step}`, title: `after denoise step ${step}`, onload: () => URL.revokeObjectURL(url) });
      }));
      button.hidden = true;
    } }, "Show how the frame was drawn");
    parts.push(make("div", { class: "row wrap drawn" }, button), strip);
  }
  box.classList.remove("quiet");
  box.replaceChildren(...parts);
}

export function noMind(box, words) {
  box.classList.add("quiet");
  box.replaceChildren(words);
}
