// The timeline: thumbnails of every frame, one lane for each branch.

import { actionName, find, make } from "./elements.js";

const STEP = 48;
/** Pixels of a thumbnail with its gap. */

export class Timeline {
  constructor(go, compare) {
    this.go = go;
    this.compare = compare;
    this.clear();
  }

  clear() {
    for (const node of this.nodes?.values() ?? []) {
      URL.revokeObjectURL(node.url);
      node.view.close();
      node.truth?.close();
    }
    this.nodes = new Map();
    this.now = null;
    this.other = null;
    this.names = new Map();
  }

  add(node) {
    const old = this.nodes.get(node.node);
    if (old) {
      URL.revokeObjectURL(node.url);
      node.view.close();
      node.truth?.close();
      this.now = old;
      return old;
    }
    const parent = this.nodes.get(node.parent);
    node.depth = parent ? parent.depth + 1 : 0;
    node.children = [];
    parent?.children.push(node);
    this.nodes.set(node.node, node);
    this.now = node;
    this.root ??= node;
    if (!parent) this.root = node;
    return node;
  }

  forget(numbers, faded) {
    for (const number of numbers) {
      const node = this.nodes.get(number);
      if (!node) continue;
      const siblings = this.nodes.get(node.parent)?.children ?? [];
      if (siblings.includes(node)) siblings.splice(siblings.indexOf(node), 1);
      URL.revokeObjectURL(node.url);
      this.nodes.delete(number);
      if (this.other === number) this.other = null;
    }
    for (const node of this.lane(this.now)) {
      if (faded <= 0) break;
      if (node.can_return) { node.can_return = false; faded -= 1; }
    }
  }

  /** Frames from the beginning to a node. */
  lane(node) {
    const path = [];
    for (let at = node; at; at = this.nodes.get(at.parent)) path.push(at);
    return path.reverse();
  }

  /** The end of the lane in which a node lies: its newest child, and so on. */
  end(node) {
    let at = node;
    while (at.children.length) at = at.children.reduce((a, b) => (a.latest > b.latest ? a : b));
    return at;
  }

  /** Marks the way to the present as the newest. */
  touch() {
    this.clock = (this.clock ?? 0) + 1;
    for (const node of this.lane(this.now)) node.latest = this.clock;
  }

  /** The ends of all lanes, in the order in which they began. */
  ends() {
    return [...this.nodes.values()].filter((node) => !node.children.length);
  }

  nameOf(end) {
    // A lane keeps its name while it grows: it belongs to the first frame behind its fork.
    let at = end;
    while (at.parent !== null) {
      const parent = this.nodes.get(at.parent);
      if (!parent || parent.children[0] !== at) break;
      at = parent;
    }
    if (!this.names.has(at.node)) this.names.set(at.node, this.names.size + 1);
    return this.names.get(at.node);
  }

  beside() {
    if (this.other === null || !this.now) return null;
    const end = this.nodes.get(this.other);
    if (!end) return null;
    const lane = this.lane(this.end(end));
    const node = lane[Math.min(this.now.depth, lane.length - 1)];
    return { node, caption: `lane ${this.nameOf(this.end(end))}, frame ${node.depth}` };
  }

  draw() {
    if (!this.now) return;
    this.touch();
    const box = find("lanes");
    const main = this.lane(this.end(this.now));
    const ends = this.ends();
    ends.forEach((end) => this.nameOf(end));
    const shown = new Set(main);
    const others = ends.filter((end) => end !== main.at(-1));
    const rows = [this.row(main, 0, main.at(-1), true, ends.length > 1)];
    for (const end of others.reverse().slice(0, 24)) {
      const lane = this.lane(end);
      const first = lane.findIndex((node) => !shown.has(node)); // what several share stands once
      for (const node of lane) shown.add(node);
      rows.push(this.row(lane.slice(first), first, end, false, true));
    }
    const { scrollLeft } = box;
    box.replaceChildren(...rows);
    box.scrollLeft = scrollLeft;
    const place = this.now.depth * STEP;
    if (place < box.scrollLeft || place + 3 * STEP > box.scrollLeft + box.clientWidth - 80) {
      box.scrollLeft = Math.max(0, place - box.clientWidth / 2);
    }
    const different = main.findIndex((node) => node.wrong.length);
    const words = [`frame ${this.now.depth} of ${main.length - 1}`];
    if (ends.length > 1) words.push(`${ends.length} lanes`);
    if (different >= 0) words.push(`differs from frame ${different} on`);
    find("where").textContent = words.join(", ");
  }

  row(nodes, first, end, isMain, hasOthers) {
    const number = this.nameOf(end);
    const name = make("div", { class: "lane-name" }, make("span", {}, hasOthers ? `lane ${number}` : "frames"));
    if (!isMain) {
      name.append(make("button", {
        type: "button", "aria-pressed": String(this.other === end.node), title: "show it beside this lane",
        onclick: () => this.compare(this.other === end.node ? null : end.node),
      }, "compare"));
    }
    const row = make("div", { class: `lane${isMain ? " current" : ""}` }, name);
    if (first) {
      const gap = make("span", { class: "gap" });
      gap.style.width = `${first * STEP - 4}px`;
      row.append(gap);
    }
    const marked = this.lane(end).find((node) => node.wrong.length);
    for (const node of nodes) row.append(this.thumb(node, node === marked));
    return row;
  }

  thumb(node, isFirstDifferent) {
    const classes = ["thumb"];
    if (isFirstDifferent) classes.push("differs");
    else if (node.outcome === "success") classes.push("won");
    else if (node.is_over) classes.push("lost");
    if (!node.can_return) classes.push("faded");
    const words = [`frame ${node.depth}`];
    if (node.action !== null) words.push(actionName(node.action));
    if (isFirstDifferent) words.push("here dream and reality differ first");
    if (!node.can_return) words.push("can be seen only");
    const button = make("button", {
      type: "button", class: classes.join(" "), title: words.join(": "), "aria-label": words.join(": "),
      "aria-current": String(node === this.now), "data-node": node.node, onclick: () => this.go(node),
    }, make("img", { src: node.url, alt: "" }));
    if (node.entropy !== undefined) button.style.setProperty("--entropy", Math.min(1, node.entropy / 2));
    return button;
  }
}
