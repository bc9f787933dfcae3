/* Helpers that create elements once and then update them, so that they keep their place and focus. */

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Gives `parent` one child for each item: updates known ones, creates new ones, removes others. */
export function keep(parent, items, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, index) => {
    const name = key(item);
    let child = known.get(name);
    known.delete(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
    update?.(child, item, index);
  });
  for (const child of known.values()) child.remove();
}

/** Creates a state: a coloured dot and its text. */
export function badge() {
  const text = make("span");
  const element = make("span", { className: "state" }, make("span", { className: "dot", ariaHidden: "true" }), text);
  return {
    element,
    set(state, words = state) {
      element.dataset.state = state;
      setText(text, words);
    },
  };
}

export const number = (value, digits = 0) =>
  value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits });

export const colour = (index) => `var(--line-${(index % 8) + 1})`;

export function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${number(value, value < 10 ? 1 : 0)} ${units[unit]}`;
}

export function duration(seconds) {
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]])
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit}`;
  return `${seconds} s`;
}
