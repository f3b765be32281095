/* The feature table: sort, filter, and show one screenful at a time. */
"use strict";

(function () {
  const STEP = 40;
  const MANY = 5;
  const view = { sort: "rank", down: true, limit: STEP, task: null, order: [] };
  const { element } = crosstime;

  /** The columns. The effects of many checkpoints come last, where they may extend beyond the screen. */
  function columns() {
    const { checkpoints } = crosstime.report;
    const { rows } = view.task;
    const many = checkpoints.length > MANY;
    const effects = checkpoints.map((checkpoint, m) => ({
      key: `ie-${m}`, title: "IE at ", checkpoint, value: (rows, i) => rows.ie[m][i], number: true,
      cell: (rows, i, top) => effect(rows.ie[m][i], top, checkpoint.colour),
    }));
    return [
      { key: "id", title: "Feature", value: (rows, i) => rows.id[i], cell: name },
      ...(many ? [{ key: "rank", title: "Largest |IE|", value: strength, number: true, cell: largest }] : effects),
      { key: "relie", title: "RelIE", value: centre, cell: (rows, i) => element("td", {}, stack(rows.rel.map((column) => column[i]), "RelIE")) },
      rows.exact ? { key: null, title: "Exact RelIE", cell: (rows, i) => element("td", {}, stack(rows.exact[i] || [null], "Exact RelIE")) } : null,
      { key: "class", title: "Class, lifecycle", value: (rows, i) => crosstime.report.classes[rows.class[i]].words, cell: kind },
      rows.sign ? { key: "sign", title: "Sign consistency", value: (rows, i) => rows.sign[strongest(rows, i)][i], number: true, cell: sign } : null,
      { key: "frequency", title: "Frequency", value: (rows, i) => rows.frequency[i], number: true, cell: (rows, i) => element("td", { class: "number" }, crosstime.percent(rows.frequency[i])) },
      rows.remarks ? { key: null, title: "Annotation", cell: (rows, i) => element("td", { class: "said" }, rows.remarks[i].join(" / ") || "–") } : null,
      { key: null, title: "Peaks on", cell: (rows, i) => tokens(rows.fires[i]) },
      { key: null, title: "Promotes", cell: (rows, i) => tokens(promoted(rows, i)) },
      ...(many ? effects : []),
    ].filter(Boolean);
  }

  /** The mean checkpoint, weighted by RelIE. */
  function centre(rows, i) {
    return rows.rel.reduce((sum, column, m) => sum + m * (column[i] ?? 0), 0);
  }

  /** |IE| at the selected checkpoint, or the largest at any. */
  function strength(rows, i) {
    const m = crosstime.state.checkpoint;
    if (m >= 0) return Math.abs(rows.ie[m][i] ?? 0);
    return Math.max(...rows.ie.map((column) => Math.abs(column[i] ?? 0)));
  }

  function text(rows, i) {
    const parts = [rows.id[i], crosstime.report.classes[rows.class[i]].words, rows.lifecycle[i], rows.label ? rows.label[i] : "", ...(rows.remarks ? rows.remarks[i] : []), ...rows.fires[i], ...promoted(rows, i)];
    return parts.join("\n").toLowerCase();
  }

  function arrange() {
    const rows = view.task.rows;
    const wanted = document.getElementById("find").value.trim().toLowerCase();
    const group = document.getElementById("class-filter").value;
    const life = document.getElementById("life-filter").value;
    const column = columns().find((item) => item.key === view.sort);
    const value = column ? column.value : strength;
    view.order = rows.id.map((_, i) => i).filter((i) =>
      (group === "" || crosstime.report.classes[rows.class[i]].group === Number(group)) && (!life || rows.lifecycle[i] === life) && (!wanted || text(rows, i).includes(wanted)));
    const keys = new Map(view.order.map((i) => [i, value(rows, i)]));
    const sign = view.down ? -1 : 1;
    view.order.sort((a, b) => {
      const x = keys.get(a), y = keys.get(b);
      const order = typeof x === "string" ? x.localeCompare(y) : (x ?? -Infinity) - (y ?? -Infinity);
      return sign * order || a - b;
    });
  }

  function head(shown) {
    const cells = shown.map((column) => {
      const label = column.checkpoint ? [column.title, crosstime.checkpoint(column.checkpoint)] : [column.title];
      if (!column.key) return element("th", { scope: "col" }, ...label);
      const state = view.sort === column.key ? (view.down ? "descending" : "ascending") : "none";
      const button = element("button", { type: "button", "data-sort": column.key }, ...label);
      return element("th", { scope: "col", "aria-sort": state, class: column.number ? "number" : null }, button);
    });
    document.querySelector("#feature-table thead").replaceChildren(element("tr", {}, ...cells));
  }

  /** A bar to the right for a positive effect, to the left for a negative one; the root makes small effects visible. */
  function signed(value, largest, colour) {
    const half = 50 * Math.sqrt(Math.abs(value ?? 0) / largest);
    const style = { "--c": colour, width: `${half}%`, left: value < 0 ? `${50 - half}%` : "50%" };
    return element("span", { class: "signed" }, element("i", { style }));
  }

  function effect(value, largest, colour) {
    const text = crosstime.number(value);
    const small = Number(text.replace("−", "-")) === 0;
    return element("td", { class: `number effect${small ? " none" : ""}`, title: value === null ? null : String(value) },
      text, signed(value, largest, colour));
  }

  function stack(shares, name) {
    const { checkpoints } = crosstime.report;
    if (shares.some((share) => share === null)) return element("span", { class: "quiet" }, "–");
    const title = checkpoints.map((checkpoint, m) => `${checkpoint.name} ${crosstime.share(shares[m])}`).join(" · ");
    const bars = checkpoints.map((checkpoint, m) =>
      element("i", { style: { "--c": checkpoint.colour, width: `${100 * shares[m]}%` } }));
    return element("span", { class: `stack${checkpoints.length > MANY ? " many" : ""}`, title, role: "img", "aria-label": `${name}: ${title}` }, ...bars);
  }

  function tokens(list) {
    const nodes = list.flatMap((token, i) => [i ? " " : null, element("bdi", { class: "token" }, token)]);
    return element("td", { class: "tokens" }, ...(list.length ? nodes : [element("span", { class: "quiet" }, "–")]));
  }

  /** The selected checkpoint, or the one with the feature's largest |IE|. */
  function strongest(rows, i) {
    const m = crosstime.state.checkpoint;
    if (m >= 0) return m;
    return rows.ie.reduce((best, column, k) => (Math.abs(column[i] ?? 0) > Math.abs(rows.ie[best][i] ?? 0) ? k : best), 0);
  }

  function promoted(rows, i) {
    const lists = rows.promotes[i];
    return lists.length ? lists[strongest(rows, i)] : [];
  }

  function name(rows, i) {
    const link = element("a", { href: `#feature-${rows.id[i]}`, class: "feature-link" }, String(rows.id[i]));
    return element("th", { scope: "row" }, link);
  }

  function kind(rows, i) {
    const { words, colour } = crosstime.report.classes[rows.class[i]];
    const life = rows.lifecycle[i];
    return element("td", { class: "class" }, crosstime.dot(colour), words, element("small", { title: crosstime.report.lifecycles[life] }, life),
      rows.label ? element("small", { title: crosstime.report.labels[rows.label[i]] }, `decoder label: ${rows.label[i]}`) : null);
  }

  function sign(rows, i) {
    return element("td", { class: "number" }, crosstime.share(rows.sign[strongest(rows, i)][i]));
  }

  /** The largest effect, and its checkpoint. */
  function largest(rows, i, top) {
    const m = strongest(rows, i);
    const checkpoint = crosstime.report.checkpoints[m];
    const cell = effect(rows.ie[m][i], top, checkpoint.colour);
    cell.append(element("small", { class: "quiet" }, "at ", checkpoint.name));
    return cell;
  }

  function show() {
    const { rows } = view.task;
    const top = Math.max(1e-12, ...rows.ie.map((column) => column.reduce((best, v) => Math.max(best, Math.abs(v ?? 0)), 0)));
    const shown = columns();
    head(shown);
    const kept = view.order.slice(0, view.limit);
    const lines = kept.map((i) => element("tr", { "data-feature": rows.id[i] }, ...shown.map((column) => column.cell(rows, i, top))));
    document.querySelector("#feature-table tbody").replaceChildren(...lines);
    document.getElementById("more").hidden = view.order.length <= view.limit;
    const all = view.order.length === rows.id.length;
    const count = (value) => value.toLocaleString("en");
    document.getElementById("count").textContent =
      `${all ? "" : `${count(view.order.length)} of `}${count(rows.id.length)} features`;
    crosstime.order = view.order.map((i) => rows.id[i]);
  }

  function refresh() {
    arrange();
    show();
  }

  function options(select, values) {
    const chosen = select.value;
    const nodes = values.map(([value, words]) => element("option", { value }, words));
    select.replaceChildren(element("option", { value: "" }, "all"), ...nodes);
    if (values.some(([value]) => value === chosen)) select.value = chosen;
  }

  async function changeTask() {
    try {
      view.task = await crosstime.loadTask(crosstime.state.task);
    } catch (error) {
      crosstime.complain(document.querySelector("#features .scroll"), error);
      return;
    }
    const rows = view.task.rows;
    const known = new Set(rows.class.map((number) => crosstime.report.classes[number].group));
    const groups = crosstime.report.groups.map((words, i) => [String(i), words]).filter(([i]) => known.has(Number(i)));
    options(document.getElementById("class-filter"), groups);
    options(document.getElementById("life-filter"), [...new Set(rows.lifecycle)].sort().map((life) => [life, life]));
    view.limit = STEP;
    refresh();
  }

  crosstime.startTable = function () {
    const table = document.getElementById("feature-table");
    if (!table) return;
    const again = () => { view.limit = STEP; refresh(); };
    document.getElementById("find").addEventListener("input", again);
    document.getElementById("class-filter").addEventListener("change", again);
    document.getElementById("life-filter").addEventListener("change", again);
    document.getElementById("more").addEventListener("click", () => { view.limit += 4 * STEP; show(); });
    table.addEventListener("click", (event) => {
      const sort = event.target.closest("[data-sort]");
      if (sort) {
        const same = view.sort === sort.dataset.sort;
        view.down = same ? !view.down : !["id", "class", "relie"].includes(sort.dataset.sort);
        view.sort = sort.dataset.sort;
        again();
        table.querySelector(`[data-sort="${view.sort}"]`).focus();
        return;
      }
      const line = event.target.closest("[data-feature]");
      if (line && !event.target.closest("a")) location.hash = `feature-${line.dataset.feature}`;
    });
    const rankAt = (checkpoint) => {
      crosstime.state.checkpoint = checkpoint;
      view.sort = "rank";
      view.down = true;
      again();
    };
    const marks = document.querySelector("[data-checkpoint-switch]");
    marks?.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      crosstime.press(marks, button);
      rankAt(Number(button.dataset.checkpoint));
    });
    document.getElementById("rank")?.addEventListener("change", (event) => rankAt(Number(event.target.value)));
    document.addEventListener("crosstime:task", changeTask);
    changeTask();
  };
})();
