/* The card of one feature, opened by any link to #feature-123. */
"use strict";

(function () {
  const { element } = crosstime;
  const MANY = 5; // up to this number of checkpoints, all numbers are shown at once
  const state = { card: null, task: 0, drawings: [] };

  /** A bar from zero with its interval, on a scale from `low` to `high`. */
  function gauge(value, interval, scale, colour, digits, note) {
    const place = (x) => (100 * (x - scale.low)) / (scale.high - scale.low);
    const zero = place(0);
    const box = element("span", { class: "scale", style: { "--zero": zero / 100 } });
    if (value !== null) {
      const end = place(value);
      box.append(element("i", { class: "fill", style: { "--c": colour, left: `${Math.min(zero, end)}%`, width: `${Math.abs(end - zero)}%` } }));
    }
    const known = interval && interval[0] !== null && interval[1] !== null;
    if (known && value !== null) {
      const [low, high] = interval.map(place);
      box.append(element("i", { class: "whisker", style: { left: `${low}%`, width: `${Math.max(high - low, 0)}%` } }));
    }
    const words = element("span", { class: "value" }, crosstime.number(value, digits));
    if (known) words.append(element("small", {}, `${crosstime.number(interval[0], digits)} to ${crosstime.number(interval[1], digits)}`));
    if (note) words.append(element("small", {}, note));
    return element("div", { class: "gauge" }, box, words);
  }

  function span(values) {
    const known = values.filter((value) => value !== null);
    const low = Math.min(0, ...known), high = Math.max(0, ...known);
    return high > low ? { low, high } : { low: 0, high: 1 };
  }

  function gauges(card, effects) {
    const { checkpoints } = crosstime.report;
    const exact = effects && effects.exact ? effects : null;
    const ie = effects && span(["ie", "ie_low", "ie_high", ...(exact ? ["exact", "exact_low", "exact_high"] : [])].flatMap((name) => effects[name]));
    const norm = span(card.norm);
    const share = { low: 0, high: 1 };
    /** The gauge of a measure at a checkpoint, with its interval; `word` marks exact values. */
    const measured = (name, m, scale, digits, word) =>
      gauge(effects[name][m], [effects[`${name}_low`][m], effects[`${name}_high`][m]], scale, checkpoints[m].colour, digits, word);
    const below = exact ? ", exact effect below" : "";
    const columns = [
      ["Checkpoint", (m) => element("th", { scope: "row" }, crosstime.checkpoint(checkpoints[m]))],
      effects && [`IE (95 % interval)${below}`, (m) => element("td", {}, measured("ie", m, ie, 3), exact && measured("exact", m, ie, 3, "exact"))],
      effects && [`RelIE (95 % interval)${below}`, (m) => element("td", {}, measured("rel", m, share, 2), exact && measured("rel_exact", m, share, 2, "exact"))],
      ["Decoder norm", (m) => element("td", {}, gauge(card.norm[m], null, norm, checkpoints[m].colour, 2, `RelDec ${crosstime.share(card.rel_dec[m])}`))],
      effects && effects.sign && ["Sign consistency", (m) => element("td", { class: "number" }, crosstime.share(effects.sign[m]))],
      card.nu_error && ["ν error", (m) => element("td", { class: "number" }, crosstime.number(card.nu_error[m], 2))],
      card.nu_reconstruction && ["ν recon­struction", (m) => element("td", { class: "number" }, crosstime.number(card.nu_reconstruction[m], 2))],
    ].filter(Boolean);
    const head = columns.map(([title]) => title);
    const rows = checkpoints.map((_, m) => element("tr", {}, ...columns.map(([, cell]) => cell(m))));
    const table = element("div", { class: "scroll" }, element("table", { class: "gauges" },
      element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)))),
      element("tbody", {}, ...rows)));
    return checkpoints.length > MANY ? element("details", {}, element("summary", {}, "All numbers, by checkpoint"), table) : table;
  }

  /** The share of the later of two checkpoints. */
  function part(values, earlier, later) {
    const [a, b] = [values[earlier], values[later]];
    return a === null || b === null || a === 0 && b === 0 ? null : Math.abs(b) / (Math.abs(a) + Math.abs(b));
  }

  /** Pairwise RelIE and RelDec of every two checkpoints, if there are few. */
  function pairs(card, effects) {
    const { checkpoints, pairs: compared, frames } = crosstime.report;
    if (frames.tile) return null;
    const rows = [["RelIE", effects && effects.ie], ["Exact RelIE", effects && effects.exact], ["RelDec", card.norm]].filter(([, values]) => values);
    return element("div", { class: "scroll" }, element("table", { class: "tight pairs" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Pair by pair"),
        ...compared.map(([a, b]) => element("th", { scope: "col", class: "number" }, `${checkpoints[b].name} against ${checkpoints[a].name}`)))),
      element("tbody", {}, ...rows.map(([title, values]) => element("tr", {}, element("th", { scope: "row" }, title),
        ...compared.map(([a, b]) => element("td", { class: "number" }, crosstime.share(part(values, a, b)))))),
      card.cosine ? element("tr", {}, element("th", { scope: "row" }, "Cosine of decoders"),
        ...compared.map(([a, b]) => element("td", { class: "number" }, crosstime.number(cosine(card, b, a), 2)))) : null)));
  }

  /** The cosine of two checkpoints' decoder vectors; the card has the lower triangle, in hundredths. */
  function cosine(card, row, column) {
    const value = card.cosine[(row * (row - 1)) / 2 + column];
    return value === null ? null : value / 100;
  }

  /** The annotations of the feature. */
  function remarks(card) {
    if (!card.remarks) return null;
    return element("ul", { class: "remarks" }, ...card.remarks.map((remark) => element("li", {},
      element("span", { class: "quiet" }, remark.annotator), " ", remark.description,
      remark.category ? element("span", { class: "tag" }, remark.category) : null,
      remark.languages.length ? element("span", { class: "quiet" }, ` ${remark.languages.join(", ")}`) : null)));
  }

  /** With many checkpoints: the feature over training, and its maps of every two checkpoints. */
  function courses(card, effects) {
    if (!crosstime.report.frames.tile) return null;
    const figure = (title, caption, height, draw) => {
      const place = crosstime.trajectory(`Feature ${card.id}: ${title}`, height);
      state.drawings.push(() => draw(place));
      return element("figure", {}, element("figcaption", {}, element("h3", {}, title)), place, element("p", { class: "caption" }, caption));
    };
    const none = card.norm.map(() => null);
    const course = { norm: card.norm, ie: effects ? effects.ie : none, ie_low: effects ? effects.ie_low : none, ie_high: effects ? effects.ie_high : none };
    return element("div", { class: "courses" },
      figure("Over training", "Above: IE with its 95 % interval. Below: norm of the decoder vector.", 280, (place) => crosstime.drawTile(place, course)),
      effects ? figure("Pairwise RelIE", "|IE| at the later checkpoint (row) over the sum of |IE| at both; column: the earlier checkpoint.", 280,
        (place) => crosstime.drawMap(place, "pairwise", (later, earlier) => part(effects.ie, earlier, later))) : null,
      card.cosine ? figure("Direction", "Cosine of the decoder vectors at two checkpoints; empty where one of them is almost zero.", 280,
        (place) => crosstime.drawMap(place, "directions", (row, column) => cosine(card, row, column))) : null);
  }

  /** A feature's share of the sum of |IE|: at each of a few checkpoints, or the largest. */
  function shares(values) {
    const { checkpoints } = crosstime.report;
    const at = (m) => `${crosstime.percent(values[m])} at ${checkpoints[m].name}`;
    if (checkpoints.length <= MANY) return values.map((_, m) => at(m)).join(", ");
    return `at most ${at(values.indexOf(Math.max(...values)))}`;
  }

  function words(card, effects) {
    const { checkpoints, tasks } = crosstime.report;
    const parts = [];
    if (effects) {
      const [life, meaning] = effects.lifecycle.split(": ");
      const at = shares(effects.share);
      parts.push("On ", element("b", {}, tasks[state.task]), ": ", element("b", {}, effects.class), "; ", element("b", {}, life),
        meaning ? ` (${meaning}). ` : ". ");
      if (!["negligible", "undefined"].includes(life)) {
        parts.push("The class gives the checkpoints with most of the effect, the lifecycle whether the feature is present at the first and at the last checkpoint, ",
          `that is, has a RelIE of at least ${crosstime.share(0.3 / checkpoints.length)}. `);
      }
      parts.push(`Share of the sum of |IE| over all features: ${at}. `);
    }
    parts.push(`It fires on ${crosstime.percent(card.frequency)} of held-out tokens.`);
    if (card.label) {
      parts.push(" Decoder label: ", element("b", {}, card.label), ` (${crosstime.report.labels[card.label]}); its norm is largest at ${card.reference}.`);
      if (card.complement !== null) parts.push(" Its complementary feature at other checkpoints is ", element("a", { class: "feature-link", href: `#feature-${card.complement}` }, `feature ${card.complement}`), ".");
    }
    return element("p", { class: "card-words" }, ...parts);
  }

  function taskSwitch(card) {
    const known = Object.keys(card.tasks).map(Number);
    if (known.length < 2) return null;
    const buttons = known.map((task) => element("button",
      { type: "button", "aria-pressed": String(task === state.task), onclick: () => { state.task = task; show(); } },
      crosstime.report.tasks[task]));
    return element("div", { class: "switch", role: "group", "aria-label": "Task" }, ...buttons);
  }

  function context(item, largest) {
    const text = element("div", { class: "text", dir: "auto" });
    item.t.forEach((token, i) => {
      const part = item.a[i] / largest;
      const attributes = { class: i === item.p ? "peak" : null, title: item.a[i] > 0 ? crosstime.number(item.a[i], 2) : null };
      if (part > 0) attributes.style = { "--a": (0.1 + 0.75 * Math.min(part, 1)).toFixed(3) };
      const node = element("bdi", attributes);
      // A leading space isn't shaded; line breaks and tabs are made visible.
      const word = /^ \S/.test(token) ? token.slice(1) : token;
      if (word !== token && i > 0) text.append(" ");
      for (const piece of word.split(/(\r\n|\r|\n|\t)/)) {
        if (/^[\r\n\t]/.test(piece)) node.append(element("span", { class: "glyph" }, piece === "\t" ? "→" : "↵"));
        else if (piece) node.append(i === item.p && piece.trim() === "" ? element("span", { class: "glyph" }, "·".repeat(piece.length)) : piece);
      }
      text.append(node);
    });
    return element("li", {}, element("span", { class: "peak-value" }, crosstime.number(item.a[item.p], 2)), text);
  }

  function contexts(card) {
    if (!card.contexts || !card.contexts.length) return [element("p", { class: "card-words" }, "No contexts were collected for this feature.")];
    const largest = card.max || Math.max(...card.contexts.map((item) => item.a[item.p]));
    return [
      element("h3", {}, "Where it fires most"),
      element("ol", { class: "contexts" }, ...card.contexts.map((item) => context(item, largest))),
    ];
  }

  function changes(card) {
    if (!card.promoted) return [];
    const list = (pairs) => element("ol", {}, ...pairs.map(([token, value]) =>
      element("li", { class: "pair" }, crosstime.token(token), element("span", {}, (value > 0 ? "+" : "") + crosstime.number(value, 2)))));
    const shown = crosstime.report.decoded.map((m) => crosstime.report.checkpoints[m]);
    const columns = shown.map((checkpoint, m) => element("div", { style: { "--c": checkpoint.colour } },
      element("p", { class: "column-head" }, crosstime.checkpoint(checkpoint)),
      element("dl", {},
        element("div", {}, element("dt", {}, "promotes"), element("dd", {}, list(card.promoted[m]))),
        element("div", {}, element("dt", {}, "suppresses"), element("dd", {}, list(card.suppressed[m]))))));
    return [
      element("h3", {}, "Effect on the next token"),
      element("div", { class: "changes" }, ...columns),
      element("p", { class: "caption" }, "Change of the logits when the feature is added to the mean activation, through the final norm and the unembedding alone.",
        shown.length < crosstime.report.checkpoints.length ? ` ${shown.length} of the ${crosstime.report.checkpoints.length} checkpoints are shown.` : null),
    ];
  }

  function neighbour(step) {
    const order = crosstime.order || [];
    const place = order.indexOf(state.card.id);
    return place < 0 ? undefined : order[place + step];
  }

  function bar(title) {
    const move = (step, label, sign) => {
      const other = state.card ? neighbour(step) : undefined;
      if (other === undefined) return null;
      return element("button", { type: "button", "aria-label": label, onclick: () => { location.hash = `feature-${other}`; } }, sign);
    };
    return element("div", { class: "card-bar" },
      element("h2", { id: "card-title", tabindex: "-1", autofocus: "" }, title),
      move(-1, "Previous feature in the table", "←"),
      move(1, "Next feature in the table", "→"),
      element("button", { type: "button", "data-close": "", onclick: close }, "Close"));
  }

  function show() {
    const { card } = state;
    const effects = card.tasks[state.task];
    const dialog = document.getElementById("card");
    state.drawings = [];
    const body = element("div", { class: "card-body" }, taskSwitch(card), words(card, effects), remarks(card), courses(card, effects), gauges(card, effects), pairs(card, effects), ...contexts(card), ...changes(card));
    dialog.replaceChildren(bar(`Feature ${card.id}`), body);
    if (dialog.open) draw();
  }

  /** Draw the figures, which need the width of an open dialog. */
  function draw() {
    for (const drawing of state.drawings.splice(0)) drawing();
  }

  function open() {
    const dialog = document.getElementById("card");
    document.body.classList.add("card-open");
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    draw();
  }

  /** Close the card; `forget` then removes it from the address without jumping to the top of the page. */
  function close() {
    document.getElementById("card").close();
  }

  function forget() {
    document.body.classList.remove("card-open");
    if (location.hash.startsWith("#feature-")) history.pushState(null, "", location.pathname + location.search);
  }

  async function follow() {
    const match = /^#feature-(\d+)$/.exec(location.hash);
    const dialog = document.getElementById("card");
    if (!match) {
      if (dialog.open) dialog.close();
      return;
    }
    const feature = Number(match[1]);
    try {
      state.card = await crosstime.loadCard(feature);
      if (state.card) {
        const known = Object.keys(state.card.tasks).map(Number);
        state.task = known.includes(crosstime.state.task) ? crosstime.state.task : known[0];
        show();
      } else {
        const text = "This feature isn't listed for any task, and no contexts were collected for it.";
        dialog.replaceChildren(bar(`Feature ${feature}`), element("div", { class: "card-body" }, element("p", {}, text)));
      }
    } catch (error) {
      crosstime.complain(dialog, error);
    }
    open();
  }

  crosstime.startCards = function () {
    const dialog = document.getElementById("card");
    dialog.addEventListener("close", forget);
    dialog.addEventListener("click", (event) => { if (event.target === dialog) close(); });
    window.addEventListener("hashchange", follow);
    follow();
  };
})();
