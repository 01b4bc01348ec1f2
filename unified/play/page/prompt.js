// The second tab: any conversation, one of the four queries, and the lines that repeat it.

import { actionName, find, make } from "./elements.js";
import { base64 } from "./wire.js";

/**
 * Makes the tab work, and returns what opens it: the first time with the present task.
 *
 * @param page {facts, wire, ask, notice, present}
 */
export function startPrompt(page) {
  const items = []; // {role, kind, text | action | blob, url}
  const names = page.facts.actions.actions;

  function draw() {
    find("items").replaceChildren(...items.map((item, place) => {
      const remove = make("button", {
        type: "button", title: "take it out", "aria-label": "take it out",
        onclick: () => { items.splice(place, 1); draw(); },
      }, "\u00d7");
      return make("li", {}, make("b", {}, item.kind === "frame" ? "world" : item.role), field(item), remove);
    }));
  }

  function field(item) {
    if (item.kind === "frame") return make("img", { src: item.url, alt: "a frame" });
    if (item.kind === "text") {
      return make("input", {
        value: item.text, maxlength: 400, "aria-label": `words of the ${item.role}`,
        oninput: (event) => { item.text = event.target.value; },
      });
    }
    if (!names) {
      return make("input", {
        value: JSON.stringify(item.action), "aria-label": "action as JSON",
        oninput: (event) => { try { item.action = JSON.parse(event.target.value); } catch { /* not yet */ } },
      });
    }
    const select = make("select", {
      "aria-label": "action", onchange: (event) => { item.action = event.target.value; },
    }, ...[...names, "unknown"].map((name) => make("option", {}, name)));
    select.value = item.action;
    return select;
  }

  function addFrame(blob) {
    if (blob.size > 2 << 20) return page.notice("The picture has more than 2 megabytes; make it smaller.", true, 8);
    items.push({ role: "world", kind: "frame", blob, url: URL.createObjectURL(blob) });
    return draw();
  }

  const adders = {
    task: () => items.push({ role: "task", kind: "text", text: page.present()?.task ?? "go to the red ball" }),
    agent: () => items.push({ role: "agent", kind: "text", text: "" }),
    world: () => items.push({ role: "world", kind: "text", text: "you see a red ball 2 ahead" }),
    action: () => items.push({ role: "agent", kind: "action", action: names ? names[0] : "unknown" }),
    frame: () => find("add-file").click(),
    present: async () => {
      const node = page.present();
      if (node) addFrame(await (await toBlob(node.view)));
    },
  };
  find("adders").addEventListener("click", (event) => {
    const what = event.target.dataset?.add;
    if (what) { adders[what](); draw(); }
  });
  find("add-file").addEventListener("change", (event) => {
    for (const file of event.target.files) addFrame(file);
    event.target.value = "";
  });
  const box = find("prompt");
  box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("drop"); });
  box.addEventListener("dragleave", () => box.classList.remove("drop"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    box.classList.remove("drop");
    for (const file of event.dataTransfer.files) if (file.type.startsWith("image/")) addFrame(file);
  });
  find("ask").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!items.length) { page.notice("Add at least a task or a frame.", true, 5); return; }
    await send();
  });
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(find(button.dataset.copy).textContent);
      page.notice("Copied.", false, 2);
    });
  }

  async function send() {
    const told = [];
    for (const item of items) {
      if (item.kind === "frame") told.push({ role: "world", picture: await base64(item.blob) });
      else if (item.kind === "text") told.push({ role: item.role, text: item.text });
      else told.push({ role: "agent", action: item.action });
    }
    const request = {
      type: "prompt", items: told, seed: Number(find("prompt-seed").value),
      temperature: Number(find("temperature").value), num_inference_steps: Number(find("steps").value),
      max_turns: Number(find("turns").value),
    };
    if (find("query").value) request.query = find("query").value;
    if (find("think").value) request.think = find("think").value === "true";
    const reply = find("reply");
    reply.replaceChildren(make("li", { class: "quiet" }, "..."));
    let count = 0;
    const done = await page.ask(request, (message) => {
      if (message.type === "reply") {
        if (!count++) reply.replaceChildren();
        reply.append(line(message));
      }
      return message.type === "replied";
    });
    if (!done) { if (!count) reply.replaceChildren(make("li", { class: "quiet" }, "No reply.")); return; }
    if (!count) reply.replaceChildren(make("li", { class: "quiet" }, "It has nothing to say."));
    find("repeat").hidden = false;
    find("python").textContent = done.python;
    find("shell").textContent = done.shell;
  }

  function line(message) {
    const parts = [make("b", {}, message.role)];
    if (message.blobs.view) parts.push(make("img", { src: URL.createObjectURL(message.blobs.view), alt: "the frame" }));
    if (message.text) parts.push(make("span", {}, message.text));
    if (message.kind === "action") parts.push(make("strong", {}, actionName(message.action) || "unknown"));
    if (message.outcome) parts.push(make("span", { class: "quiet" }, message.outcome));
    return make("li", {}, ...parts);
  }

  let isBegun = false;
  return () => {
    if (isBegun) return;
    isBegun = true;
    adders.task();
    draw();
  };
}

function toBlob(bitmap) {
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((done) => canvas.toBlob(done));
}
