"use strict";
(() => {
  const plots = [...document.querySelectorAll(".plot")];
  let linking = false;

  // Panels of one run share their steps: a zoom into one is a zoom into all.
  const link = (plot) => (change) => {
    const zoom = Object.fromEntries(Object.entries(change).filter(([key]) => key.startsWith("xaxis.")));
    if (linking || plot.dataset.over !== "step" || !Object.keys(zoom).length) return;
    linking = true;
    const others = [...plot.closest("section").querySelectorAll(".plot.js-plotly-plot[data-over=step]")];
    Promise.all(others.filter((other) => other !== plot).map((other) => Plotly.relayout(other, zoom)))
      .finally(() => { linking = false; });
  };

  const draw = (plot) => {
    const source = plot.querySelector("script");
    if (!source) return;
    source.remove();
    Plotly.newPlot(plot, JSON.parse(source.textContent));
    plot.on("plotly_relayout", link(plot));
  };

  // Drawing takes some 20 ms a panel, and a page may hold hundreds: each is drawn when it comes near.
  const near = new IntersectionObserver(
    (seen) => seen.filter((entry) => entry.isIntersecting).forEach((entry) => {
      near.unobserve(entry.target);
      draw(entry.target);
    }),
    { rootMargin: "800px" },
  );
  plots.forEach((plot) => near.observe(plot));

  // Colours are pairs of light and dark in the style sheet; figures take theirs from there too.
  const root = document.documentElement;
  document.querySelector("#scheme").addEventListener("click", () => {
    const dark = root.style.colorScheme
      ? root.style.colorScheme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.style.colorScheme = dark ? "light" : "dark";
  });

  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    plots.forEach(draw);
  });
})();
