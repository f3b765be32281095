/* Draws the figures when they come near the screen, switches their variants, and opens cards on a click. */
"use strict";

(function () {
  const shown = new Map(); // key of a figure -> index of the variant shown

  function config(title) {
    const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "figure";
    return {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage"]],
      toImageButtonOptions: { format: "svg", filename: `crosstime-${name}` },
    };
  }

  function openOnClick(div) {
    div.on("plotly_click", (event) => {
      const feature = event.points.length ? event.points[0].customdata : undefined;
      if (typeof feature === "number") location.hash = `feature-${feature}`;
    });
  }

  /** Draws one variant; plotly changes what it is given, so it gets a copy. */
  function draw(div, figure, variant) {
    const { data, layout } = structuredClone(figure.variants[variant]);
    const first = !div.classList.contains("js-plotly-plot");
    return Plotly.react(div, data, layout, config(div.dataset.title)).then(() => { if (first) openOnClick(div); });
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) render(entry.target);
  }, { rootMargin: "400px" });

  function render(div) {
    near.unobserve(div);
    const key = div.dataset.figure;
    if (div.dataset.drawn || !crosstime.figures[key]) return Promise.resolve();
    div.dataset.drawn = "yes";
    return draw(div, crosstime.figures[key], shown.get(key) || 0);
  }

  async function drawRelative() {
    const div = document.getElementById("plot-relative");
    if (!div) return;
    try {
      const task = await crosstime.loadTask(crosstime.state.task);
      await draw(div, task.relative, 0);
    } catch (error) {
      crosstime.complain(div, error);
    }
  }

  crosstime.startFigures = function () {
    const divs = [...document.querySelectorAll("[data-figure]")];
    for (const div of divs) near.observe(div);
    for (const container of document.querySelectorAll("[data-switch]")) {
      container.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!button) return;
        crosstime.press(container, button);
        for (const key of container.dataset.switch.split(" ")) {
          shown.set(key, Number(button.dataset.variant));
          const div = document.getElementById(`plot-${key}`);
          if (div.dataset.drawn) draw(div, crosstime.figures[key], shown.get(key));
        }
      });
    }
    document.addEventListener("crosstime:task", drawRelative);
    drawRelative();
    // Paper has another width than the screen, and shows what was never scrolled to.
    window.addEventListener("beforeprint", () => { for (const div of divs) render(div); });
    matchMedia("print").addEventListener("change", () => {
      for (const div of document.querySelectorAll(".js-plotly-plot")) Plotly.Plots.resize(div);
    });
  };
})();
