// Small parts that every module needs. Text is always text, never HTML.

export const find = (id) => document.getElementById(id);

/** An element with attributes, and children: elements or text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Buttons of which one is chosen. */
export function choice(box, options, chosen, pick) {
  const buttons = options.map(({ value, name, title }) => {
    const isChosen = value === chosen;
    return make("button", {
      type: "button", role: "radio", "aria-checked": String(isChosen), "data-value": value, title,
      onclick: () => pick(value),
    }, name);
  });
  const had = box.contains(document.activeElement) ? document.activeElement.dataset.value : null;
  box.replaceChildren(...buttons);
  if (had) buttons.find((button) => button.dataset.value === had)?.focus();
}

/** Offers a file to the browser. */
export function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** An action in words. */
export function actionName(action) {
  if (action === null || action === undefined) return "";
  if (typeof action === "string") return action;
  if (Array.isArray(action)) return action.flat().map((x) => Number(x).toFixed(2)).join(" ");
  if (action.keys) return [...action.keys, ...action.mouse.map((x) => x.toFixed(1))].join(" ");
  return Object.values(action).map(String).join(" ");
}
