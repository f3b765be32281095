/* Single features over training: the tiles of the top features, and the figures on a card. */
"use strict";

(function () {
  const { element } = crosstime;

  /** Draw a frame of the report with the values of one feature; `values` has one object per trace. */
  function fill(div, frame, values, title) {
    const { data, layout } = structuredClone(crosstime.report.frames[frame]);
    data.forEach((trace, i) => Object.assign(trace, values[i]));
    return crosstime.plot(div, { data, layout }, title);
  }

  /** A figure, to be drawn once it is in the page, where it has a width. */
  function figure(title, height, label) {
    return element("div", { class: "plot", style: { height: `${height}px` }, role: "img", "aria-label": label || title, "data-title": title });
  }

  /** IE with its interval, and decoder norm. */
  crosstime.drawTile = function (div, feature) {
    const whole = (values) => values.every((value) => value !== null);
    const band = whole(feature.ie_low) && whole(feature.ie_high) ? [...feature.ie_high, ...feature.ie_low.toReversed()] : [];
    return fill(div, "tile", [{ y: band }, { y: feature.ie }, { y: feature.norm }], div.dataset.title);
  };

  /** A map of every two checkpoints; `value(later, earlier)` is the cell below the diagonal. */
  crosstime.drawMap = function (div, frame, value) {
    const n = crosstime.report.checkpoints.length;
    const z = Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => (j < i ? value(i, j) : null)));
    return fill(div, frame, [{ z }], div.dataset.title);
  };

  crosstime.trajectory = figure;

  async function showTiles() {
    const box = document.getElementById("tiles");
    let task;
    try {
      task = await crosstime.loadTask(crosstime.state.task);
    } catch (error) {
      crosstime.complain(box, error);
      return;
    }
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        crosstime.drawTile(entry.target, task.tiles[entry.target.dataset.tile]);
      }
    }, { rootMargin: "400px" });
    const nodes = task.tiles.map((feature, i) => {
      const tokens = feature.fires.flatMap((token, k) => [k ? " " : null, element("bdi", { class: "token" }, token)]);
      const place = figure(`Feature ${feature.id}`, 190, `Feature ${feature.id}: indirect effect and decoder norm over training`);
      place.dataset.tile = i;
      near.observe(place);
      const head = element("figcaption", {}, element("a", { class: "feature-link", href: `#feature-${feature.id}` }, `Feature ${feature.id}`), " ", ...tokens);
      return element("figure", {}, head, place);
    });
    box.replaceChildren(...(nodes.length ? nodes : [element("p", { class: "quiet" }, "No feature has an effect on this task.")]));
  }

  crosstime.startTrajectories = function () {
    if (!document.getElementById("tiles")) return;
    document.addEventListener("crosstime:task", showTiles);
    showTiles();
  };
})();
