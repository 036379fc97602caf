// The charts of the overview: drawn from the numbers in #series, again when they have changed.
"use strict";

(() => {
  const source = document.getElementById("series");
  // A colour of the style sheet, as it is in the theme of now.
  const swatch = document.createElement("i");
  document.body.append(swatch);
  swatch.hidden = true;
  const colour = (name) => {
    swatch.className = name;
    return getComputedStyle(swatch).color;
  };
  const utc = (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC");
  const duration = (u, ms) => (ms == null ? "–" : ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);
  const rate = (u, number) => (number == null ? "–" : `${number}/s`);

  const charts = [
    {
      place: document.getElementById("setup-chart"),
      rows: [1, 2, 3],
      series: [["p50", "series-1"], ["p95", "series-2"], ["p99", "series-3"]],
      value: duration,
      ticks: (u, values) => values.map((ms) => duration(u, ms)),
      least: 200,
    },
    {
      place: document.getElementById("rate-chart"),
      rows: [4, 5],
      series: [["received", "series-1"], ["not served", "series-3"]],
      value: rate,
      ticks: (u, values) => values.map(String),
      least: 1,
    },
  ];

  function made(chart, data) {
    const axis = { stroke: () => colour("axis"), grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false } };
    return new uPlot(
      {
        width: chart.place.clientWidth,
        height: 190,
        tzDate: utc,
        cursor: { y: false, points: { size: 6 } },
        scales: { y: { range: (u, low, high) => [0, Math.max(chart.least, (high || 0) * 1.1)] } },
        axes: [
          { ...axis, space: 70, values: "{HH}:{mm}", size: 28 },
          { ...axis, values: chart.ticks, size: 58 },
        ],
        series: [
          { label: "UTC", value: "{HH}:{mm}:{ss}" },
          ...chart.series.map(([label, name]) => ({
            label, value: chart.value, stroke: () => colour(name), width: 1.5, points: { show: false }, spanGaps: false,
          })),
        ],
      },
      data,
      chart.place,
    );
  }

  let drawn = "";
  function draw() {
    const text = source.textContent.trim();
    if (text === drawn) return;
    drawn = text;
    const all = JSON.parse(text);
    for (const chart of charts) {
      const data = [all[0], ...chart.rows.map((row) => all[row])];
      if (chart.plot) chart.plot.setData(data);
      else chart.plot = made(chart, data);
    }
  }

  function redraw() {
    for (const chart of charts) chart.plot?.redraw(false, true);
  }

  new ResizeObserver(() => {
    for (const { plot, place } of charts) if (plot && place.clientWidth) plot.setSize({ width: place.clientWidth, height: 190 });
  }).observe(charts[0].place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  new MutationObserver(draw).observe(source, { childList: true, subtree: true, characterData: true });
  draw();
})();
