// The chart of the page Usage: calls and minutes by day, in the colours of the stylesheet.
"use strict";

(() => {
  const place = document.getElementById("usage-chart");
  if (!place || typeof uPlot === "undefined") return;
  const series = JSON.parse(place.dataset.series);
  let chart = null;

  function colour(name) {
    return getComputedStyle(document.querySelector(`.probe-${name}`)).color;
  }

  // Colours are named in the stylesheet: read from elements that have them, for canvas knows no variables.
  for (const name of ["axis", "grid", "series-1", "series-2"]) {
    const probe = document.createElement("span");
    probe.className = `${name} probe-${name}`;
    probe.hidden = true;
    place.after(probe);
  }

  function draw() {
    chart?.destroy();
    const axis = { stroke: colour("axis"), grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("grid") } };
    const bars = uPlot.paths.bars({ size: [0.6, 60] });
    chart = new uPlot(
      {
        width: Math.max(280, place.clientWidth),
        height: 240,
        tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
        legend: { live: false },
        scales: {
          // Half a day more at each end: a bar stands in the middle of its day.
          x: { range: (_chart, least, most) => [least - 43200, most + 43200] },
          calls: { range: (_chart, _least, most) => [0, Math.max(1, most * 1.1)] },
          minutes: { range: (_chart, _least, most) => [0, Math.max(1, most * 1.1)] },
        },
        axes: [{ ...axis, values: "{MM}-{DD}", space: 60 }, { ...axis, scale: "calls" }, { ...axis, scale: "minutes", side: 1, grid: { show: false } }],
        series: [
          { label: "day", value: "{YYYY}-{MM}-{DD}" },
          { label: "calls", scale: "calls", stroke: colour("series-1"), fill: colour("series-1"), paths: bars, points: { show: false } },
          { label: "minutes", scale: "minutes", stroke: colour("series-2"), width: 2 },
        ],
      },
      series,
      place,
    );
  }

  draw();
  addEventListener("resize", () => chart.setSize({ width: Math.max(280, place.clientWidth), height: 240 }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
