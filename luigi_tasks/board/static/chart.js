// Charts of the macro `chart` (parts/chart.html): uPlot draws the numbers that stand in the figure's JSON.
// Colours are those of board.css, in dark too; times are in the reader's zone; the same numbers stand in a table.
"use strict";

(() => {
  const HEIGHT = 220, COLOURS = 8;
  // So many values have a point each.
  const FEW = 40;
  // Lines differ by more than their colour.
  const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
  const drawn = new Map();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const series = (index) => colour(`--series-${(index % COLOURS) + 1}`);

  const written = (options) => new Intl.DateTimeFormat(undefined, options);
  const DAY = written({ month: "short", day: "numeric" });
  const HOUR = written({ hour: "2-digit", minute: "2-digit" });
  const SECOND = written({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const MOMENT = written({ year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

  function number(data, value) {
    if (value === null || value === undefined) return "–";
    const shown = data.share ? value * 100 : value;
    const digits = Math.abs(shown) >= 100 || Number.isInteger(shown) ? 0 : Math.abs(shown) >= 1 ? 1 : 3;
    return shown.toLocaleString(undefined, { maximumFractionDigits: digits }) + (data.share ? "%" : data.unit && ` ${data.unit}`);
  }

  const place = (data, x) => (data.time ? MOMENT.format(new Date(x * 1000)) : x.toLocaleString());

  // Dates where the day changes, else hours.
  function timeWords(_, splits, __, ___, step) {
    const hour = step < 60 ? SECOND : HOUR;
    let day = "";
    return splits.map((seconds) => {
      const at = new Date(seconds * 1000), its = DAY.format(at);
      if (step >= 86400) return its;
      const isNew = its !== day;
      day = its;
      return isNew ? `${hour.format(at)}\n${its}` : hour.format(at);
    });
  }

  // Stacked: what lies on top is drawn first, each later one over it.
  function stacked(values) {
    const sums = [];
    values.forEach((one, index) => sums.push(one.map((value, at) => (value || 0) + (index ? sums[index - 1][at] : 0))));
    return sums;
  }

  function options(data, width) {
    const axis = { stroke: colour("--muted"), font: "12px system-ui, sans-serif", ticks: { show: false },
                   grid: { stroke: colour("--line"), width: 1 } };
    const ground = colour("--ground"), order = data.series.map((_, index) => index);
    const last = data.x.length - 1, whole = data.x.every(Number.isInteger);
    if (data.stacked) order.reverse();
    return {
      order,
      uplot: {
        width, height: HEIGHT,
        drawOrder: data.stacked ? ["series", "axes"] : ["axes", "series"],
        scales: { x: { time: data.time, range: (_, low, high) => span(data, low, high) }, y: { range: (_, low, high) => limits(data, low, high) } },
        axes: [
          data.time
            ? { ...axis, values: timeWords, space: 80, size: 42 }
            : { ...axis, size: 28, values: (_, splits) => splits.map((one) => one.toLocaleString()), ...(whole && { incrs: [1, 2, 5, 10, 20, 50, 100, 1000] }) },
          { ...axis, size: 64, values: (_, splits) => splits.map((one) => number(data, one)) },
        ],
        cursor: { points: { show: !data.stacked } },
        legend: { live: true },
        series: [
          // The legend has the numbers below the pointer, else the last.
          { label: data.x_name, value: (_, __, ___, at) => place(data, data.x[at ?? last]) },
          ...order.map((index) => ({
            label: data.series[index].name,
            stroke: data.stacked ? ground : series(index),
            fill: data.stacked ? series(index) : undefined,
            dash: data.stacked ? [] : DASHES[index % DASHES.length],
            width: data.stacked ? 1 : 2,
            points: { show: !data.stacked && data.x.length <= FEW, size: 5, fill: series(index),
                      filter: (_, __, isShown) => (isShown || data.stacked ? null : lonely(data.series[index].values)) },
            value: (_, __, ___, at) => number(data, data.series[index].values[at ?? last]),
          })),
        ],
      },
    };
  }

  // One moment, or several within a second, have no width: they get some. uPlot would give one moment years.
  function span(data, low, high) {
    if (data.x.length === 1) low = high = data.x[0];
    const least = data.time ? (low === high ? 3600 : 60) : low === high ? 2 : 0, margin = Math.max(least - (high - low), 0) / 2;
    return [low - margin, high + margin];
  }

  // Values without a neighbour are no line: they get a point.
  function lonely(values) {
    const isNone = (at) => values[at] === null || values[at] === undefined;
    return values.map((_, at) => at).filter((at) => !isNone(at) && isNone(at - 1) && isNone(at + 1));
  }

  function limits(data, low, high) {
    const least = data.lowest ?? Math.min(low ?? 0, 0), most = data.highest ?? high ?? 1;
    return [least, most > least ? most + (data.highest === null ? (most - least) * 0.05 : 0) : least + 1];
  }

  // An area of one moment has no width: it gets half an hour.
  function widen(data) {
    data.x = [data.x[0] - 1800, data.x[0]];
    data.series.forEach((one) => one.values.push(one.values[0]));
  }

  function draw(figure) {
    const plotted = figure.querySelector(".plot"), given = document.getElementById(figure.dataset.chart);
    if (!plotted || !given) return;
    const data = JSON.parse(given.textContent);
    if (data.stacked && data.x.length === 1) widen(data);
    const { order, uplot } = options(data, plotted.clientWidth || 600);
    const values = data.series.map((one) => one.values), shown = data.stacked ? stacked(values) : values;
    drawn.get(figure)?.plot.destroy();
    const plot = new uPlot(uplot, [data.x, ...order.map((index) => shown[index])], plotted);
    if (data.stacked) {
      // The legend's marks would have the colour of the edges.
      plot.root.querySelectorAll(".u-series:not(:first-child) .u-marker").forEach((mark, at) => {
        mark.style.background = series(order[at]);
        mark.style.borderColor = series(order[at]);
      });
    }
    const size = drawn.get(figure)?.size || new ResizeObserver(() => {
      const known = drawn.get(figure)?.plot;
      if (known && plotted.clientWidth && known.width !== plotted.clientWidth) known.setSize({ width: plotted.clientWidth, height: HEIGHT });
    });
    size.observe(plotted);
    drawn.set(figure, { plot, size });
  }

  function drawAll() {
    for (const [figure, { plot, size }] of drawn) {
      if (figure.isConnected) continue;
      plot.destroy();
      size.disconnect();
      drawn.delete(figure);
    }
    document.querySelectorAll("figure[data-chart]").forEach((figure) => drawn.has(figure) || draw(figure));
  }

  document.addEventListener("DOMContentLoaded", () => {
    // After the first paint: the page is read meanwhile.
    requestAnimationFrame(() => setTimeout(drawAll));
    document.body.addEventListener("htmx:afterSwap", drawAll);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => [...drawn.keys()].forEach(draw));
  });
})();
