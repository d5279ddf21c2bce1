// Saves a panel's figure as PNG or SVG, and what is drawn in it as CSV, without a server.
(function () {
  "use strict";

  const RISKY = /^[=+\-@\t\r]/; // a spreadsheet would run these as formulas
  const NUMBER = /^[+\-]?(\d+\.?\d*|\.\d+)(e[+\-]?\d+)?$/i; // but not these

  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = (RISKY.test(value) && !NUMBER.test(value) ? "'" : "") + value;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function plain(label) { // labels are escaped for Plotly
    const box = document.createElement("textarea");
    box.innerHTML = label === undefined ? "" : String(label);
    return box.value;
  }

  function rows(data) {
    const lines = [["series", "x", "y", "value"]];
    for (const trace of data) {
      const name = plain(trace.name);
      const x = Array.from(trace.x || []), y = Array.from(trace.y || []);
      if (trace.type === "heatmap") {
        const at = (i, j) => (trace.transpose ? trace.z[i][j] : trace.z[j][i]);
        x.forEach((step, i) => y.forEach((label, j) => lines.push([name, step, plain(label), at(i, j)])));
      } else {
        x.forEach((step, i) => lines.push([name, plain(step), plain(y[i]), plain((trace.text || [])[i])]));
      }
    }
    return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  function offer(text, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function picture(graph, format, name, title) {
    const style = getComputedStyle(document.documentElement);
    const colour = (key) => style.getPropertyValue(key).trim();
    const layout = {
      ...graph.layout, // the page's style sheet colours a figure here; the picture has to bring its own
      paper_bgcolor: colour("--cw-panel"), plot_bgcolor: colour("--cw-panel"),
      font: { ...graph.layout.font, color: colour("--cw-text") },
      showlegend: graph.data.filter((t) => t.type === "scatter" && t.yaxis !== "y2").length > 1,
      title: { text: title, x: 0.02, font: { size: 13 } },
      margin: { ...graph.layout.margin, t: 40 },
    };
    const data = graph.data.map((t) => (t.yaxis === "y2" ? { ...t, showlegend: false } : t));
    const size = { width: Math.max(640, graph.clientWidth), height: Math.max(320, graph.clientHeight) };
    return window.Plotly.downloadImage({ data, layout }, { format, filename: name, scale: format === "png" ? 2 : 1, ...size });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".cw-export");
    if (!button) return;
    const panel = button.closest(".cw-panel"), save = button.closest(".cw-save");
    const graph = panel.querySelector(".js-plotly-plot");
    const name = `collapsewatch-${save.dataset.name}`;
    if (button.dataset.kind === "csv") offer(rows(graph.data), `${name}.csv`);
    else picture(graph, button.dataset.kind, name, panel.getAttribute("aria-label").replaceAll("<", "&lt;"));
    save.open = false;
    save.querySelector("summary").focus();
  });
})();
