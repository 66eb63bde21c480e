"use strict";
// Histograms that follow the filters, and the curve of the throughput, drawn by uPlot.

const BINS = 40,
  CHART_HEIGHT = 130;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Bars of equal width, one at each of the rising `data[0]`, as high as `data[1]`. */
function bars(place, data, time) {
  const half = (data[0][1] - data[0][0]) / 2;
  const axis = () => ({
    stroke: colour("--faint"),
    grid: { stroke: colour("--line"), width: 0.5 },
    ticks: { show: false },
  });
  const options = {
    width: place.clientWidth,
    height: CHART_HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    scales: {
      x: { time, range: (_, low, high) => [low - half, high + half] },
      y: { range: (_, low, high) => [0, high || 1] },
    },
    axes: [
      { ...axis(), size: time ? 42 : 28 },
      { ...axis(), size: 52 },
    ],
    series: [{}, { fill: colour("--accent"), points: { show: false }, paths: uPlot.paths.bars({ size: [0.9] }) }],
  };
  const drawn = new uPlot(options, data, place);
  new ResizeObserver(() => drawn.setSize({ width: place.clientWidth, height: CHART_HEIGHT })).observe(place);
  return drawn;
}

/** An empty figure: its caption, and the place of its picture. */
function figure(parent) {
  const element = document.createElement("figure");
  const caption = document.createElement("figcaption"),
    place = document.createElement("div");
  place.setAttribute("role", "img");
  element.append(caption, place);
  parent.append(element);
  return { caption, place };
}

class Histogram {
  constructor(parent, name, values) {
    Object.assign(this, figure(parent), { name, values });
    this.low = Infinity;
    this.high = -Infinity;
    for (const value of values) {
      if (value < this.low) this.low = value;
      if (value > this.high) this.high = value;
    }
    this.width = (this.high - this.low || 1) / BINS;
    const centres = Array.from({ length: BINS }, (_, bin) => this.low + (bin + 0.5) * this.width);
    this.data = [centres, new Array(BINS).fill(0)];
    this.draw();
  }

  draw() {
    this.chart?.destroy();
    this.chart = bars(this.place, this.data, false);
  }

  show(view) {
    const counts = new Array(BINS).fill(0);
    let measured = 0,
      sum = 0;
    for (const row of view) {
      const value = this.values[row];
      if (Number.isNaN(value)) continue;
      counts[Math.min(BINS - 1, Math.floor((value - this.low) / this.width))]++;
      measured++;
      sum += value;
    }
    this.data = [this.data[0], counts];
    this.chart.setData(this.data);
    this.caption.textContent = measured
      ? `${this.name}: ${measured.toLocaleString("en")} rows, mean ${shortNumber(sum / measured)}`
      : `${this.name}: not measured`;
    this.place.setAttribute("aria-label", `Histogram of ${this.caption.textContent}`);
  }
}

function drawThroughput(parent, { times, rates }) {
  const { caption, place } = figure(parent);
  caption.textContent = "Rows committed per second";
  place.setAttribute("aria-label", `Rows committed per second over time, ${shortNumber(Math.max(...rates))} at most`);
  return () => {
    place.replaceChildren();
    bars(place, [times, rates], true);
  };
}
