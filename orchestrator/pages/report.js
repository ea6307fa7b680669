"use strict";
// Draws the figures in the colours that the style sheet has for the reader's scheme, and again when that changes.
const figures = JSON.parse(document.getElementById("figures").textContent);
const plots = [...document.querySelectorAll(".plot")];

function coloured(value, key = "") {
  if (typeof value === "string" && /color$/.test(key)) {
    return value.replace(/^var\((--[\w-]+)\)$/, (_, name) =>
      getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  }
  if (Array.isArray(value)) return value.map((item) => coloured(item, key));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, name)]));
}

function draw(i) {
  const { data, layout } = coloured(figures[i]);
  return Plotly.react(plots[i], data, layout, { displayModeBar: false, responsive: true });
}

function pointed(event) {
  const id = event.points[0].customdata;
  const row = [...document.querySelectorAll("tr[data-trial]")].find((each) => each.dataset.trial === id);
  if (!row) return;
  document.querySelectorAll(".pointed").forEach((each) => each.classList.remove("pointed"));
  row.classList.add("pointed");
  row.scrollIntoView({ block: "center" });
}

// One after the other, so that a page of many answers at once.
plots.forEach((plot, i) => setTimeout(() => draw(i).then(() => plot.on("plotly_click", pointed))));

const redraw = () => plots.forEach((_, i) => draw(i));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
matchMedia("print").addEventListener("change", redraw);
