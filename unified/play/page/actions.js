// What one can do, as keys, buttons, sliders, or keyboard and mouse, by the model's action space.

import { make } from "./elements.js";

const USUAL = {
  left: "ArrowLeft", right: "ArrowRight", forward: "ArrowUp", up: "ArrowUp", down: "ArrowDown",
  backward: "ArrowDown", toggle: " ", pickup: "p", drop: "d", done: "Enter", noop: "n", fire: " ",
};
const SHOWN = {
  ArrowLeft: "\u2190", ArrowRight: "\u2192", ArrowUp: "\u2191", ArrowDown: "\u2193", " ": "space",
  Enter: "enter",
};
const TAKEN = new Set(["m", "e", "r", "t", ".", "[", "]", "Backspace", "Escape", "Tab"]);
const LETTERS = "123456789qwasdfzxcvbyuiohjkl";

export class Controls {
  /** @param act called with an action */
  constructor(box, config, act) {
    Object.assign(this, { box, config, act });
    this.live = () => false;
    this.sample = () => null;
    this.key = () => false;
    const build = {
      discrete: () => this.named(),
      multi_discrete: () => this.choices(),
      continuous: () => this.sliders(),
      keyboard_mouse: () => this.mouse(),
    };
    (build[config.kind] ?? (() => this.text()))();
  }

  named() {
    const names = this.config.actions;
    const store = `keys:${this.config.name}:${names.join()}`;
    let kept = {};
    try { kept = JSON.parse(localStorage.getItem(store) ?? "{}"); } catch { /* as new */ }
    const used = new Set(Object.values(kept));
    const keys = {};
    for (const name of names) {
      const usual = USUAL[name.toLowerCase()];
      keys[name] = kept[name] ?? (usual && !used.has(usual) ? usual
        : [...LETTERS].find((c) => !used.has(c)));
      used.add(keys[name]);
    }
    let asks = null;
    const buttons = {};
    const draw = () => {
      this.box.replaceChildren(...names.map((name) => {
        const cap = make("kbd", {
          title: "choose another key", class: asks === name ? "waits" : null,
          onclick: (event) => { event.stopPropagation(); asks = asks === name ? null : name; draw(); },
        }, asks === name ? "?" : SHOWN[keys[name]] ?? keys[name]);
        buttons[name] = make("button", {
          class: "key", type: "button", "data-action": name, onclick: () => this.act(name),
        }, cap, name);
        return buttons[name];
      }));
    };
    draw();
    const known = (key) => (key.length === 1 ? key.toLowerCase() : key);
    this.key = (event) => {
      const key = known(event.key);
      if (asks) {
        if (!TAKEN.has(key)) {
          for (const name of names) if (keys[name] === key) keys[name] = keys[asks];
          keys[asks] = key;
          localStorage.setItem(store, JSON.stringify(keys));
        }
        asks = null;
        draw();
        return true;
      }
      const name = names.find((one) => keys[one] === key);
      if (!name) return false;
      buttons[name].classList.add("down");
      setTimeout(() => buttons[name].classList.remove("down"), 90);
      this.act(name);
      return true;
    };
  }

  choices() {
    const parts = Object.entries(this.config.parts).map(([name, options]) => {
      const names = Array.isArray(options) ? options : [...Array(options).keys()].map(String);
      return [name, make("select", { "aria-label": name },
        ...names.map((one) => make("option", {}, one)))];
    });
    this.sample = () => Object.fromEntries(parts.map(([name, select]) => [name, select.value]));
    const rows = parts.flatMap(([name, select]) => [make("span", {}, name), select, make("span")]);
    this.form(rows);
  }

  sliders() {
    const { dimensions, edges, chunk = 1 } = this.config;
    const parts = dimensions.map((name, i) => {
      const [low, high] = [edges[i][0], edges[i].at(-1)];
      const value = Math.min(high, Math.max(low, 0));
      const input = make("input", { type: "range", min: low, max: high, step: "any", value, "aria-label": name });
      const output = make("output", { class: "number" }, value.toFixed(2));
      input.addEventListener("input", () => { output.value = Number(input.value).toFixed(2); });
      return { name, input, output, low, high };
    });
    this.sample = () => {
      const pad = navigator.getGamepads?.().find(Boolean);
      if (pad) parts.forEach(({ input, output, low, high }, i) => {
        if (pad.axes[i] === undefined || Math.abs(pad.axes[i]) < 0.08) return;
        input.value = low + (pad.axes[i] + 1) / 2 * (high - low);
        output.value = Number(input.value).toFixed(2);
      });
      const vector = parts.map(({ input }) => Number(input.value));
      return chunk > 1 ? Array(chunk).fill(vector) : vector;
    };
    this.form(parts.flatMap(({ name, input, output }) => [make("span", {}, name), input, output]));
  }

  mouse() {
    const held = new Set();
    const most = [this.config.mouse].flat();
    const limits = most.length === 2 ? most : [most[0], most[0]];
    let moved = [0, 0];
    let isLocked = false;
    const names = new Map(this.config.keys.map((name) => [name.toLowerCase(), name]));
    const keyOf = (event) => names.get(event.key === " " ? "space" : event.key.toLowerCase());
    const note = make("p", { class: "quiet small" });
    const tell = () => {
      note.textContent = isLocked ? "Esc gives the mouse back." : `Keys: ${this.config.keys.join(", ")}.`;
    };
    const start = make("button", { type: "button", class: "main" }, "Take keyboard and mouse");
    start.addEventListener("click", () => this.lockOn.requestPointerLock?.());
    this.lockOn = this.box;
    document.addEventListener("pointerlockchange", () => {
      isLocked = document.pointerLockElement === this.lockOn;
      held.clear();
      moved = [0, 0];
      tell();
      if (isLocked) this.act(this.sample());
    });
    document.addEventListener("mousemove", (event) => {
      if (isLocked) moved = [moved[0] + event.movementX, moved[1] + event.movementY];
    });
    document.addEventListener("keyup", (event) => held.delete(keyOf(event)));
    this.key = (event) => {
      const name = keyOf(event);
      if (!name) return false;
      held.add(name);
      if (!isLocked) { this.act(this.sample()); held.delete(name); }
      return true;
    };
    this.sample = () => {
      const mouse = moved.map((x, i) => Math.max(-limits[i], Math.min(limits[i], x)));
      moved = [0, 0];
      return { keys: this.config.keys.filter((key) => held.has(key)), mouse };
    };
    this.live = () => isLocked;
    tell();
    this.box.replaceChildren(start, note);
  }

  text() {
    const input = make("input", { "aria-label": "action as JSON", placeholder: "an action, as JSON" });
    this.sample = () => JSON.parse(input.value);
    this.form([make("span", {}, "action"), input, make("span")]);
  }

  form(rows) {
    const act = () => {
      try { this.act(this.sample()); } catch { /* no JSON yet */ }
    };
    const button = make("button", { type: "button", class: "main", "data-action": "act", onclick: act }, "Act (enter)");
    this.box.replaceChildren(make("div", { class: "parts" }, ...rows), button);
    this.key = (event) => {
      if (event.key !== "Enter") return false;
      act();
      return true;
    };
  }
}
