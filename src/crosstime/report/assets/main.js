/* Start the parts of the page, the task switches, and the marks in the navigation. */
"use strict";

(function () {
  function startTasks() {
    const switches = [...document.querySelectorAll("[data-task-switch]")];
    for (const container of switches) {
      container.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!button) return;
        crosstime.state.task = Number(button.dataset.task);
        for (const other of switches) crosstime.press(other, other.querySelector(`[data-task="${crosstime.state.task}"]`));
        document.dispatchEvent(new CustomEvent("crosstime:task"));
      });
    }
  }

  /** Mark in the navigation which section is on the screen. */
  function startNavigation() {
    const links = [...document.querySelectorAll(".toc a")];
    const sections = links.map((link) => document.querySelector(link.getAttribute("href")));
    const mark = () => {
      let here = -1;
      sections.forEach((section, i) => { if (section.getBoundingClientRect().top < 0.4 * innerHeight) here = i; });
      links.forEach((link, i) => link.classList.toggle("here", i === here));
    };
    addEventListener("scroll", mark, { passive: true });
    mark();
  }

  startTasks();
  startNavigation();
  crosstime.startFigures();
  crosstime.startTrajectories();
  crosstime.startTable();
  crosstime.startCards();
})();
