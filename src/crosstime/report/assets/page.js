/* The only global of the page: the data from the script files, the state, and small helpers. */
"use strict";

const crosstime = { report: null, figures: {}, tasks: [], cards: [], state: { task: 0, checkpoint: -1 } };

/** An element with attributes and children. Strings become text, never markup. */
crosstime.element = function (tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") for (const [key, item] of Object.entries(value)) node.style.setProperty(key, item);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};

/** Load a script file of data once: a page from the file system can't fetch data, but it can add scripts. */
crosstime.load = (function () {
  const loading = new Map();
  return function (path) {
    if (!loading.has(path)) {
      loading.set(path, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = path;
        script.onload = resolve;
        script.onerror = () => reject(new Error(`${path} is missing: the folder of the report is incomplete`));
        document.head.append(script);
      }));
    }
    return loading.get(path);
  };
})();

crosstime.loadTask = async function (index) {
  await crosstime.load(`data/task-${index}.js`);
  return crosstime.tasks[index];
};

/** The card of a feature, or undefined if the report has none. */
crosstime.loadCard = async function (feature) {
  const starts = crosstime.report.chunks;
  let chunk = -1;
  while (chunk + 1 < starts.length && starts[chunk + 1] <= feature) chunk += 1;
  if (chunk < 0) return undefined;
  await crosstime.load(`data/cards-${chunk}.js`);
  return crosstime.cards[chunk][feature];
};

crosstime.number = function (value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
};

crosstime.share = function (value) {
  return value === null || value === undefined ? "–" : value.toFixed(2).replace(/^0/, "");
};

crosstime.percent = function (value) {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < 0.00005) return "<\u202f0.01\u202f%";
  return `${(100 * value).toFixed(value < 0.01 ? 2 : 1)}\u202f%`;
};

/** A token with visible spaces at its edges, line breaks and tabs, isolated in its text direction. */
crosstime.token = function (text, attributes) {
  const node = crosstime.element("bdi", attributes);
  const edges = /^(\s*)([\s\S]*?)(\s*)$/.exec(text);
  const glyphs = (space) => space.replace(/\r\n|\r|\n/g, "↵").replace(/\t/g, "→").replace(/[^↵→]/g, "·");
  const glyph = (space) => crosstime.element("span", { class: "glyph" }, glyphs(space));
  if (text === "") node.append(crosstime.element("span", { class: "glyph" }, "∅"));
  if (edges[1]) node.append(glyph(edges[1]));
  if (edges[2]) node.append(edges[2].replace(/\r\n|\r|\n/g, "↵"));
  if (edges[3]) node.append(glyph(edges[3]));
  return node;
};

crosstime.dot = (colour) => crosstime.element("i", { class: "dot", style: { "--c": colour } });

crosstime.checkpoint = (checkpoint) =>
  crosstime.element("span", { class: "checkpoint" }, crosstime.dot(checkpoint.colour), checkpoint.name);

/** Mark one button of a switch as pressed. */
crosstime.press = function (container, button) {
  for (const other of container.querySelectorAll("button")) other.setAttribute("aria-pressed", String(other === button));
};

/** Show an error in the place where the reader expects the content. */
crosstime.complain = function (container, error) {
  container.replaceChildren(crosstime.element("p", { class: "notice" }, error.message));
};
