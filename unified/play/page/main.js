// The page: glues the connection, the stage, the timeline, the seats and the words together.

import { Controls } from "./actions.js";
import { actionName, choice, download, find, make } from "./elements.js";
import { noMind, showMind } from "./mind.js";
import { startPrompt } from "./prompt.js";
import { show } from "./stage.js";
import { Timeline } from "./timeline.js";
import { Wire, base64, squeeze, unsqueeze } from "./wire.js";

const fragment = new URLSearchParams(location.hash.slice(1));
const WIDE = matchMedia("(min-width: 901px)").matches;

let facts = null;
let controls = null;
let seats = { agent: "human", world: "dream", agents: ["human"], worlds: ["dream"] };
let isBusy = false; // a step was asked for, and its frame is not drawn yet
let waiting = null; // the newest key that came meanwhile
let isPaused = false;
let lastFrame = 0;
let rate = 0;
let log = [];
let beginPrompt = () => {};

const timeline = new Timeline(goTo, (end) => { timeline.other = end; draw(); });
const wire = new Wire(fragment.get("token") ?? sessionStorage.getItem("token"), {
  message: receive,
  state: (words, isBad) => notice(words, isBad),
});
if (fragment.get("token")) sessionStorage.setItem("token", fragment.get("token"));

// What is said to the player

let noticeTimer = 0;
function notice(words, isBad = false, seconds = 0) {
  const box = find("notice");
  clearTimeout(noticeTimer);
  box.hidden = !words;
  box.textContent = words ?? "";
  box.classList.toggle("bad", isBad);
  if (seconds) noticeTimer = setTimeout(() => { box.hidden = true; }, 1000 * seconds);
}

async function ask(request, until) {
  try {
    const answer = await wire.ask(request, until);
    return answer;
  } catch (error) {
    notice(sentence(error.message), true, 8);
    return null;
  }
}

const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;

// Messages of the server

async function receive(message) {
  if (message.type === "welcome") return welcome(message);
  if (message.type === "frame") return frame(message);
  if (message.type === "seats") setSeats(message);
  else if (message.type === "at") { timeline.now = timeline.nodes.get(message.node); log = spoken(); draw(); }
  else if (message.type === "forgot") {
    timeline.forget(message.nodes, message.faded);
    const parts = [];
    if (message.nodes.length) parts.push(`${message.nodes.length} frames of old branches were given up`);
    if (message.faded) parts.push(`${message.faded} early frames can be seen only`);
    notice(`To save memory, ${parts.join(", and ")}.`, false, 6);
    draw();
  } else if (message.type === "file") download(message.blobs.file, message.name);
  return undefined;
}

async function welcome(message) {
  const isNew = facts === null;
  facts = message;
  notice("");
  timeline.clear();
  find("about").textContent = `${facts.model}, ${(facts.parameters / 1e6).toFixed(1)} million parameters: agent and world`;
  find("level").replaceChildren(...facts.levels.map((level) => make("option", {}, level)));
  find("open-level").hidden = !facts.levels.length;
  find("heard-words").replaceChildren();
  for (const id of ["open-world-row", "add-world"]) find(id).hidden = !facts.knows_world;
  find("say-what").querySelector("[value=tell]").disabled = !facts.knows_world;
  find("steps").value = facts.steps;
  if (isNew) {
    controls = new Controls(find("controls"), facts.actions, act);
    beginPrompt = startPrompt({ facts, wire, ask, notice, present: () => timeline.now });
    helpKeys();
    if (!find("prompt").hidden) beginPrompt();
  }
  if (facts.is_open) return;
  // Not awaited: its answers come through here, too.
  if (fragment.get("play")) replay(fragment.get("play"));
  else openFirst();
}

function openFirst() {
  const level = fragment.get("level") ?? facts.levels[0];
  const seed = Number(fragment.get("seed") ?? 1_000_000 + Math.floor(Math.random() * 900_000));
  if (level === undefined) {
    find("open").open = true;
    notice("Open a world from words or from your own picture.");
    return;
  }
  openWorld({ level, seed }, fragment.get("world") ?? "dream");
}

async function frame(message) {
  const node = message;
  const files = message.blobs;
  node.view = await createImageBitmap(files.view);
  node.truth = files.truth ? await createImageBitmap(files.truth) : null;
  node.url = URL.createObjectURL(files.view);
  if (node.is_first) {
    timeline.clear();
    log = [];
    setSeats(node.seats);
    if (node.note) notice(sentence(node.note), false, 6);
  }
  const kept = timeline.add(node);
  log = spoken();
  if (!node.is_old) draw(kept);
  if (node.ms) {
    const now = performance.now();
    const gap = now - lastFrame;
    rate = gap < 1500 ? 0.8 * (rate || 1000 / gap) + 0.2 * (1000 / gap) : 0;
    lastFrame = now;
    meter(node.ms);
  }
}

let keyTime = 0;
function meter(ms) {
  const parts = [];
  if (keyTime) parts.push(`key to frame ${(performance.now() - keyTime).toFixed(0)} ms`);
  parts.push(`model ${ms.model.toFixed(0)} ms`);
  if (rate) parts.push(`${rate.toFixed(1)} frames/s`);
  find("meter").textContent = parts.join(" \u00b7 ");
}

// Drawing

function draw() {
  const node = timeline.now;
  if (!node) return;
  show(node, facts.tile, timeline.beside());
  find("task").textContent = node.task ?? "";
  const state = find("state");
  const over = node.is_over ? ending(node) : "";
  state.className = over ? (over.isGood ? "good" : "bad") : "quiet";
  state.textContent = over ? over.words : caption(node);
  timeline.draw();
  drawLog();
  clearTimeout(draw.later);
  if (find("mind").open) draw.later = setTimeout(weigh, 150);
}

function caption(node) {
  const who = { human: "you", model: "the model", random: "chance", expert: "the expert" };
  if (node.action === null) {
    const how = WIDE ? "Steer with the keys below, or hand the seat to the model with M." : "Touch an action, or hand the seat to the model.";
    return facts.actions.name === "babyai" ? `You are the triangle and look up. ${how}` : how;
  }
  return `${who[node.agent]}: ${actionName(node.action)}`;
}

function ending(node) {
  const dream = node.outcome;
  const real = node.truth_outcome;
  if (real && real !== dream) {
    const words = { ongoing: "goes on", success: "says it is done", failure: "says it failed" };
    return { isGood: false, words: `The dream ${words[dream]}, reality ${words[real]}. Go back to play on.` };
  }
  return dream === "success"
    ? { isGood: true, words: "Done. Go back in time, or open another world." }
    : { isGood: false, words: "Over, without success. Go back in time, or open another world." };
}

/** What was said on the present lane. */
function spoken() {
  const lines = [];
  if (!timeline.now) return lines;
  let task = null;
  for (const node of timeline.lane(timeline.now)) {
    for (const words of node.heard) { lines.push(["task", words]); task = words; }
    if (node.parent === null && node.task && node.task !== task) lines.push(["task", node.task]);
    if (node.said) lines.push(["agent", node.said]);
    if (node.told) lines.push(["world", node.told]);
    for (const pair of node.asked ?? []) lines.push(...pair);
  }
  return lines;
}

function drawLog() {
  const box = find("log");
  const names = { task: "task", agent: "agent", world: "world", ask: "you", answer: "model", next: "next" };
  box.replaceChildren(...log.slice(-60).map(([who, words]) =>
    make("li", { class: who }, make("b", {}, names[who]), make("span", {}, words))));
  box.scrollTop = box.scrollHeight;
}

async function weigh() {
  const node = timeline.now;
  if (!node || isBusy) return;
  const box = find("mind-body");
  if (node.is_over) return noMind(box, "The episode is over: nobody acts after this frame.");
  if (!node.can_return) return noMind(box, "Its memory was given up.");
  try {
    const mind = node.mind ?? await wire.ask({ type: "weigh", node: node.node });
    node.mind = mind;
    node.entropy = mind.entropy;
    if (timeline.now === node) {
      const isDrawn = node.parent !== null && node.world !== "real";
      showMind(box, mind, node, isDrawn ? () => ask({ type: "denoise", node: node.node }) : null);
      const thumb = find("lanes").querySelector(`[data-node="${node.node}"]`);
      thumb?.style.setProperty("--entropy", Math.min(1, node.entropy / 2));
    }
  } catch (error) {
    noMind(box, sentence(error.message));
  }
}

// Playing

/** A human's action; the newest one waits while a frame is being drawn. */
function act(action) {
  if (!timeline.now) return;
  if (isBusy) { waiting = action; return; }
  step(action, performance.now());
}

async function step(action, began) {
  isBusy = true;
  keyTime = action === null ? 0 : began;
  const request = { type: "step" };
  if (action !== null) request.action = action;
  const answer = await ask(request);
  isBusy = false;
  if (answer === null) { waiting = null; if (action === null) setPaused(true); return; }
  await new Promise((done) => requestAnimationFrame(done));
  if (timeline.now?.is_over) { waiting = null; return; }
  if (waiting !== null) {
    const next = waiting;
    waiting = null;
    step(next, performance.now());
  } else if (controls.live()) {
    step(controls.sample(), performance.now());
  } else {
    clearTimeout(draw.later);
    if (find("mind").open) draw.later = setTimeout(weigh, seats.agent === "human" ? 150 : 0);
  }
}

/** Whoever else sits in the agent's seat goes on by himself, as fast as is wished. */
async function run() {
  for (;;) {
    const began = performance.now();
    const isOn = seats.agent !== "human" && !isPaused && timeline.now && !timeline.now.is_over;
    if (isOn && !isBusy && wire.socket?.readyState === WebSocket.OPEN) await step(null, began);
    const wait = 1000 / Number(find("speed").value) - (performance.now() - began);
    await new Promise((done) => setTimeout(done, Math.max(isOn ? 5 : 60, wait)));
  }
}

async function goTo(node) {
  if (node === timeline.now || isBusy) return;
  if (seats.agent !== "human") setPaused(true);
  await ask({ type: "goto", node: node.node });
  notice("");
}

function setPaused(value) {
  isPaused = value;
  find("pause").textContent = isPaused ? "Go" : "Pause";
}

function setSeats(message) {
  seats = message;
  const agents = { human: "You", model: "Model", expert: "Expert", random: "Random" };
  const worlds = { dream: "Dream", real: "Reality", both: "Both" };
  const titles = { dream: "the model draws the next frame", real: "the true environment", both: "both in lock-step, with their difference" };
  choice(find("agents"), seats.agents.map((value) => ({ value, name: agents[value] })), seats.agent, sitAgent);
  choice(find("worlds"), seats.worlds.map((value) => ({ value, name: worlds[value], title: titles[value] })), seats.world,
    (world) => ask({ type: "seats", world }));
  find("run").hidden = seats.agent === "human";
}

async function sitAgent(agent) {
  setPaused(false);
  waiting = null;
  await ask({ type: "seats", agent });
}

// Words

function hint() {
  const words = find("say-words").value;
  const known = new Set(facts?.words ?? []);
  const strange = known.size ? [...new Set(words.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [])].filter((word) => !known.has(word)) : [];
  find("hint").textContent = strange.length ? `It never heard: ${strange.join(", ")}. What it makes of that is a guess.` : "";
}

async function say(event) {
  event.preventDefault();
  const what = find("say-what").value;
  const words = find("say-words").value.trim();
  const node = timeline.now;
  if (!node || (!words && what !== "ask")) return;
  if (what === "ask") {
    const request = { type: "ask", node: node.node };
    if (words) request.words = words;
    const answer = await ask(request);
    if (answer) {
      node.asked = [...(node.asked ?? []), [["ask", words || "what do you see?"], ["answer", answer.words || "(nothing)"]]];
      log = spoken();
      drawLog();
    }
  } else {
    const answer = await ask({ type: what, words });
    if (!answer) return;
    if (what === "instruct") find("task").textContent = words;
    log = [...spoken(), ["next", what === "tell" ? `the world: ${words}` : words]];
    drawLog();
  }
  find("say-words").value = "";
  hint();
}

function sayPlaceholder() {
  const what = find("say-what").value;
  find("say-words").placeholder = { instruct: "go to the red ball", tell: "a box appears 1 ahead", ask: "what do you see?" }[what];
}

// Opening, keeping, sharing

async function openWorld(opening, world) {
  setPaused(false);
  const answer = await ask({ type: "open", opening, world });
  if (answer) {
    find("shared").hidden = true;
    if (opening.level) { find("level").value = opening.level; find("seed").value = opening.seed; }
  } else if (!timeline.now) find("open").open = true; // another way in
}

async function replay(text) {
  let recipe;
  try {
    recipe = await unsqueeze(text);
  } catch {
    notice("The link is damaged; copy it again.", true);
    openFirst();
    return;
  }
  notice("Playing the link again.");
  const done = await ask({ type: "replay", recipe }, (message) => message.type === "replayed");
  if (done) notice(done.is_same ? "Played again: every frame is as it was." : "Played again, but frames differ: another version or machine.", !done.is_same, 8);
  else if (!timeline.now) openFirst();
}

async function share() {
  const answer = await ask({ type: "share" });
  if (!answer) return;
  const link = `${location.origin}/#play=${await squeeze(answer.recipe)}`;
  const field = find("shared").querySelector("input");
  find("shared").hidden = false;
  field.value = link;
  field.select();
  try {
    await navigator.clipboard.writeText(link);
    notice("The link is copied. It holds the model's name, the seed and all inputs, and replays exactly.", false, 6);
  } catch {
    notice("Copy the link below. It replays exactly.", false, 6);
  }
}

function helpKeys() {
  const keys = [["M", "you or the model"], [".", "pause"], ["E", "one step"], ["\u232b", "back one frame"],
    ["[ ]", "along the lane"], ["R", "restart"], ["T", "words"]];
  find("keys-help").replaceChildren(...keys.flatMap(([key, words]) => [make("kbd", {}, key), ` ${words}   `]));
}

// Keys

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("play").hidden) return;
  const { target } = event;
  const isTyping = target.matches?.("input:not([type=range]), textarea, select");
  if (isTyping) {
    if (event.key === "Escape") target.blur();
    return;
  }
  if (target.matches?.("button, summary, a") && (event.key === "Enter" || event.key === " ")) return;
  if (target.matches?.("input[type=range]") && event.key.startsWith("Arrow")) return;
  const meta = {
    m: () => sitAgent(seats.agent === "human" ? "model" : "human"),
    ".": () => setPaused(!isPaused),
    e: () => { if (seats.agent === "human") notice("It is your turn; M hands the seat to the model.", false, 3); else { setPaused(true); if (!isBusy) step(null, performance.now()); } },
    Backspace: () => undo(),
    "[": () => along(-1),
    "]": () => along(1),
    r: () => timeline.root && goTo(timeline.root),
    t: () => find("say-words").focus(),
  };
  if (controls?.key(event)) { event.preventDefault(); return; }
  const done = meta[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (done && !event.repeat) { event.preventDefault(); done(); }
}

function undo() {
  const parent = timeline.nodes.get(timeline.now?.parent);
  if (parent) goTo(parent);
}

function along(by) {
  if (!timeline.now) return;
  const lane = timeline.lane(timeline.end(timeline.now));
  const node = lane[timeline.now.depth + by];
  if (node) goTo(node);
}

function tab(name) {
  for (const one of ["play", "prompt"]) {
    find(one).hidden = one !== name;
    find(`tab-${one}`).setAttribute("aria-selected", String(one === name));
  }
  find("keys").hidden = name === "prompt"; // they play
  if (name !== "prompt") return;
  beginPrompt();
  if (seats.agent !== "human") setPaused(true);
}

// Wiring

document.addEventListener("keydown", onKey);
document.addEventListener("click", (event) => {
  // A button that was clicked with the mouse must not swallow the next space.
  if (event.detail > 0 && event.target.closest("button")) document.activeElement?.blur();
});
find("tab-play").addEventListener("click", () => tab("play"));
find("tab-prompt").addEventListener("click", () => tab("prompt"));
find("pause").addEventListener("click", () => setPaused(!isPaused));
find("once").addEventListener("click", () => { setPaused(true); if (!isBusy) step(null, performance.now()); });
find("speed").addEventListener("input", () => { find("speed-out").value = find("speed").value === "30" ? "most" : `${find("speed").value}/s`; });
find("say").addEventListener("submit", say);
find("say-words").addEventListener("input", hint);
find("say-what").addEventListener("change", sayPlaceholder);
find("mind").addEventListener("toggle", () => { if (find("mind").open) weigh(); });
find("undo").addEventListener("click", undo);
find("restart").addEventListener("click", () => timeline.root && goTo(timeline.root));
find("gif").addEventListener("click", () => ask({ type: "keep", what: "gif" }));
find("mp4").addEventListener("click", () => ask({ type: "keep", what: "mp4" }));
find("record").addEventListener("click", () => ask({ type: "keep", what: "recording" }));
find("share").addEventListener("click", share);
find("dice").addEventListener("click", () => { find("seed").value = 1_000_000 + Math.floor(Math.random() * 900_000); });
find("open-level").addEventListener("submit", (event) => {
  event.preventDefault();
  openWorld({ level: find("level").value, seed: Number(find("seed").value) }, seats.world);
});
find("open-words").addEventListener("submit", async (event) => {
  event.preventDefault();
  const opening = { seed: Number(find("seed").value) };
  const task = find("open-task").value.trim();
  const words = find("open-world").value.trim();
  const [file] = find("open-picture").files;
  if (task) opening.task = task;
  if (words) opening.words = words;
  if (file && file.size > 2 << 20) { notice("The picture has more than 2 megabytes; make it smaller.", true, 8); return; }
  if (file) opening.picture = await base64(file);
  openWorld(opening, "dream");
});
window.addEventListener("hashchange", () => {
  const link = new URLSearchParams(location.hash.slice(1)).get("play");
  if (link) replay(link);
});
if (!WIDE) find("mind").open = false;
run();
wire.connect();
