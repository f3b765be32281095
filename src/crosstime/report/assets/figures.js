/* Draw the figures when they come near the screen, switch their variants, and open cards on a click. */
"use strict";

(function () {
  const shown = new Map(); // key of a figure -> index of the variant shown

  /** The data of a figure: each section has its own file. */
  const dataOf = (div) => (crosstime.figures[div.closest("section").id] || {})[div.dataset.figure];

  function config(title) {
    const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "figure";
    return {
      responsive: true,
      displaylogo: false,
      modeBarButtons: [["toImage"]],
      toImageButtonOptions: { format: "svg", filename: `crosstime-${name}` },
    };
  }

  /** The feature of a point; the traces of a map name one feature per row. */
  function featureOf(point) {
    const { features } = point.data.meta || {};
    return features ? features[point.pointIndex[0]] : point.customdata;
  }

  function openOnClick(div) {
    div.on("plotly_click", (event) => {
      const feature = event.points.length ? featureOf(event.points[0]) : undefined;
      if (typeof feature === "number") location.hash = `feature-${feature}`;
    });
  }

  crosstime.plot = function (div, { data, layout }, title) {
    const first = !div.classList.contains("js-plotly-plot");
    return Plotly.react(div, data, layout, config(title)).then(() => { if (first) openOnClick(div); });
  };

  /** Draw one variant, from a copy: plotly modifies its input. */
  function draw(div, figure, variant) {
    return crosstime.plot(div, structuredClone(figure.variants[variant]), div.dataset.title);
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) render(entry.target);
  }, { rootMargin: "400px" });

  function render(div) {
    near.unobserve(div);
    if (div.dataset.taskFigure) return drawOfTask(div);
    const figure = dataOf(div);
    if (div.dataset.drawn || !figure) return Promise.resolve();
    div.dataset.drawn = "yes";
    return draw(div, figure, shown.get(div.dataset.figure) || 0);
  }

  /** Draw a figure of the selected task; it is drawn again when the task changes. */
  async function drawOfTask(div) {
    try {
      const task = await crosstime.loadTask(crosstime.state.task);
      div.dataset.drawn = "yes";
      const place = div.dataset.taskFigure;
      await draw(div, task.figures[place], shown.get(place) || 0);
    } catch (error) {
      crosstime.complain(div, error);
    }
  }

  function change(container, variant) {
    for (const key of container.dataset.switch.split(" ")) {
      shown.set(key, variant);
      const div = document.getElementById(`plot-${key}`);
      if (div.dataset.drawn) div.dataset.taskFigure ? drawOfTask(div) : draw(div, dataOf(div), variant);
    }
  }

  crosstime.startFigures = function () {
    const divs = [...document.querySelectorAll("[data-figure], [data-task-figure]")];
    for (const div of divs) near.observe(div);
    for (const container of document.querySelectorAll("[data-switch]")) {
      container.addEventListener("change", (event) => change(container, Number(event.target.value)));
      container.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!button) return;
        crosstime.press(container, button);
        change(container, Number(button.dataset.variant));
      });
    }
    document.addEventListener("crosstime:task", () => {
      for (const div of document.querySelectorAll("[data-task-figure][data-drawn]")) drawOfTask(div);
    });
    // Print has a different width from the screen, and includes figures that were never scrolled to.
    window.addEventListener("beforeprint", () => { for (const div of divs) render(div); });
    matchMedia("print").addEventListener("change", () => {
      for (const div of document.querySelectorAll(".js-plotly-plot")) Plotly.Plots.resize(div);
    });
  };
})();
