"use strict";
// The page: filters decide the view, the view decides all else. The filters are in the address, so that a reload keeps
// them.

const EXTREMES = 6,
  SHEET_STEP = 24;
const metrics = embedded("packed-metrics");
const form = document.getElementById("filters");

function field(name) {
  return form.elements.namedItem(name);
}

class Page {
  constructor(rows) {
    this.rows = rows;
    this.sort = "";
    const open = (row, among) => this.one.open(row, among);
    const columns = ["key", "edit", "status", ...metrics.map(({ name }) => name)];
    this.one = new OneImage(document.getElementById("one"), rows);
    this.sheet = new Tiles(document.getElementById("sheet"), rows, open);
    this.grid = new Grid(document.getElementById("scroller"), rows, columns, open, (name) => this.sortBy(name));
    if (metrics.length) {
      this.worst = new Tiles(document.getElementById("worst"), rows, open);
      this.best = new Tiles(document.getElementById("best"), rows, open);
    }
    const parent = document.getElementById("histograms");
    this.histograms = metrics.map(({ name }) => new Histogram(parent, name, rows.metrics[name]));
    this.fillChoices();
    this.readAddress();
    this.listen();
    this.update();
  }

  fillChoices() {
    const options = (names) => names.map((name) => new Option(name, name));
    field("edit").append(...options(this.rows.edit.names));
    field("status").append(...options(this.rows.status.names));
    field("metric")?.append(...options(metrics.map(({ name }) => name)));
  }

  listen() {
    form.addEventListener("input", ({ target }) => {
      if (target.name === "metric") field("from").value = field("to").value = "";
      this.update();
    });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => ((this.sort = ""), this.update())));
    document.getElementById("more").addEventListener("click", () => this.showSheet(this.onSheet + SHEET_STEP));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
      this.histograms.forEach((h) => h.draw()),
    );
    addEventListener("hashchange", () => (this.readAddress(), this.update()));
  }

  /** Rising, falling, then as planned again. */
  sortBy(name) {
    this.sort = { [name]: `-${name}`, [`-${name}`]: "" }[this.sort] ?? name;
    this.update();
  }

  filters() {
    const entries = [...new FormData(form)].filter(([, value]) => value !== "");
    return { ...Object.fromEntries(entries), ...(this.sort && { sort: this.sort }) };
  }

  readAddress() {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const part of form.elements) {
      if (part.name) part.value = wanted.get(part.name) ?? part.options?.[0].value ?? "";
    }
    this.sort = wanted.get("sort") ?? "";
  }

  update() {
    const filters = this.filters();
    this.view = makeView(this.rows, filters);
    document.getElementById("count").textContent =
      `${this.view.length.toLocaleString("en")} of ${this.rows.count.toLocaleString("en")} rows.`;
    this.histograms.forEach((histogram) => histogram.show(this.view));
    if (metrics.length) this.showExtremes(filters.metric);
    this.showSheet(SHEET_STEP);
    this.grid.show(this.view, filters);
    history.replaceState(history.state, "", `#${new URLSearchParams(filters)}`);
  }

  showExtremes(name) {
    const { better, says } = metrics.find((metric) => metric.name === name);
    const rising = sorted(
      this.rows,
      this.view.filter((row) => !Number.isNaN(this.rows.metrics[name][row])),
      name,
    );
    const low = rising.slice(0, EXTREMES),
      high = rising.slice(-EXTREMES).reverse();
    const [worst, best] = better === "low" ? [high, low] : [low, high];
    document.getElementById("says").textContent = `${name}: ${says}${better ? ` (${better} is better)` : ""}.`;
    document.getElementById("worst-title").textContent = `${better ? "Worst" : "Lowest"} by ${name}`;
    document.getElementById("best-title").textContent = `${better ? "Best" : "Highest"} by ${name}`;
    this.worst.show(worst, name);
    this.best.show(best, name);
  }

  showSheet(count) {
    const inView = new Uint8Array(this.rows.count);
    for (const row of this.view) inView[row] = 1;
    const pictured = this.sort
      ? this.view.filter((row) => this.rows.isPictured.has(row))
      : this.rows.pictured.filter((row) => inView[row]);
    this.onSheet = Math.min(count, pictured.length);
    const sort = this.sort.replace(/^-/, "");
    this.sheet.show(pictured.slice(0, this.onSheet), sort in this.rows.metrics && sort);
    document.getElementById("sheet-title").textContent =
      `Contact sheet: ${this.onSheet} of ${pictured.length} rows with pictures`;
    document.getElementById("more").hidden = this.onSheet === pictured.length;
  }
}

/** While the run is at work its report is written again and again: load it again, and look at the same place of it. */
function reloadLater(page, seconds) {
  const pause = document.getElementById("pause");
  pause.addEventListener("click", () =>
    pause.setAttribute("aria-pressed", pause.getAttribute("aria-pressed") === "false"),
  );
  setInterval(() => {
    if (pause.getAttribute("aria-pressed") === "true" || page.one.dialog.open) return;
    const focused = document.activeElement?.name || document.activeElement?.id;
    history.replaceState({ scroll: scrollY, gridScroll: page.grid.scroller.scrollTop, focused }, "");
    location.reload();
  }, 1000 * seconds);
}

function restorePlace(page) {
  if (!history.state) return;
  page.grid.scroller.scrollTop = history.state.gridScroll;
  scrollTo(0, history.state.scroll);
  (field(history.state.focused) ?? document.getElementById(history.state.focused))?.focus({ preventScroll: true });
}

async function main() {
  const page = new Page(await readRows());
  const throughput = embedded("packed-throughput");
  const place = document.getElementById("throughput");
  if (throughput && place) {
    const draw = drawThroughput(place, throughput);
    draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
  restorePlace(page);
  if (document.body.dataset.reloadSeconds) reloadLater(page, Number(document.body.dataset.reloadSeconds));
  document.documentElement.dataset.ready = "true";
}

main();
