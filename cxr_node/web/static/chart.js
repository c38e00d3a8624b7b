// The overview's chart, drawn by uPlot from the table beneath it, and drawn again when that changes.
"use strict";

let chart = null;

function colour(name) { return getComputedStyle(document.documentElement).getPropertyValue(name).trim(); }

function hours() {
  const rows = [...document.querySelectorAll("#hours tbody tr")];
  const columns = [[], [], [], []];
  for (const row of rows) {
    columns[0].push(Number(row.dataset.at));
    [...row.querySelectorAll("td")].forEach((cell, index) => columns[index + 1].push(Number(cell.dataset.value)));
  }
  return columns;
}

function draw() {
  const place = document.getElementById("chart");
  if (!place || typeof uPlot === "undefined") return;
  const data = hours();
  if (!data[0].length) return;
  chart?.destroy();
  const labels = JSON.parse(place.dataset.labels);
  const axis = { stroke: colour("--faint"), grid: { stroke: colour("--line-soft"), width: 1 }, ticks: { show: false } };
  const font = "12px system-ui, sans-serif";
  const steps = uPlot.paths.linear();
  const line = (label, name, dash, fill) => ({
    label, stroke: colour(name), width: 2, dash, paths: steps, fill, points: { show: data[0].length < 2 },
  });
  chart = new uPlot({
    width: place.clientWidth,
    height: 230,
    padding: [10, 26, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(4, high * 1.1)] } },
    axes: [
      { ...axis, font, values: (_, times) => times.map((at) => `${String(new Date(at * 1000).getHours()).padStart(2, "0")}:00`) },
      { ...axis, font, size: 46, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000] },
    ],
    series: [
      {},
      line(labels[0], "--accent", undefined, `${colour("--accent")}22`),
      line(labels[1], "--busy", [8, 5]),
      line(labels[2], "--odd", [2, 4]),
    ],
  }, data, place);
}

document.addEventListener("DOMContentLoaded", draw);
document.addEventListener("cxr:theme", draw);
document.addEventListener("htmx:afterSettle", (event) => { if (event.target.id === "hours-part") draw(); });
let waiting = 0;
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(draw, 120); });
