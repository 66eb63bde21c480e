"use strict";
// The table of all rows. Only those in sight are in the document.

const OVERSCAN = 12;

class Grid {
  constructor(scroller, rows, columns, open, sortBy) {
    Object.assign(this, { scroller, rows, columns, open, sortBy, view: [], drawn: new Map() });
    this.table = scroller.querySelector("table");
    this.body = this.table.tBodies[0];
    this.above = this.space();
    this.below = this.space();
    this.body.append(this.above, this.below);
    this.table.tHead.append(this.heads());
    scroller.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()));
    new ResizeObserver(() => this.draw()).observe(scroller);
  }

  space() {
    const row = document.createElement("tr");
    row.className = "space";
    row.setAttribute("aria-hidden", "true");
    row.append(document.createElement("td"));
    return row;
  }

  heads() {
    const row = document.createElement("tr");
    for (const name of this.columns) {
      const head = element("th", ""),
        button = element("button", name);
      head.scope = "col";
      head.dataset.column = name;
      button.type = "button";
      button.addEventListener("click", () => this.sortBy(name));
      head.append(button);
      row.append(head);
    }
    return row;
  }

  show(view, filters) {
    this.view = view;
    this.shownMetrics = [filters.metric, filters.sort?.replace(/^-/, "")];
    this.table.setAttribute("aria-rowcount", view.length + 1);
    for (const head of this.table.tHead.rows[0].cells) this.mark(head, filters.sort);
    this.drawn.forEach((row) => row.remove());
    this.drawn.clear();
    this.draw();
  }

  mark(head, sort = "") {
    const name = head.dataset.column,
      falling = sort === `-${name}`,
      rising = sort === name;
    head.setAttribute("aria-sort", rising ? "ascending" : falling ? "descending" : "none");
    head.firstChild.textContent = name + (rising ? " ▲" : falling ? " ▼" : "");
    head.classList.toggle("other", this.isOther(name));
  }

  /** Whether a narrow screen leaves a column out: it has room for the chosen metric alone. */
  isOther(name) {
    return name in this.rows.metrics && !this.shownMetrics.includes(name);
  }

  draw() {
    const height = this.rowHeight(),
      inSight = Math.ceil(this.scroller.clientHeight / height);
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - OVERSCAN);
    const last = Math.min(this.view.length, first + inSight + 2 * OVERSCAN);
    for (const [place, row] of this.drawn) {
      if (place < first || place >= last) {
        row.remove();
        this.drawn.delete(place);
      }
    }
    let before = this.above;
    for (let place = first; place < last; place++) {
      if (!this.drawn.has(place)) this.drawn.set(place, this.line(place));
      if (before.nextSibling !== this.drawn.get(place)) before.after(this.drawn.get(place));
      before = this.drawn.get(place);
    }
    this.above.firstChild.style.height = `${first * height}px`;
    this.below.firstChild.style.height = `${(this.view.length - last) * height}px`;
  }

  rowHeight() {
    return 2.5 * parseFloat(getComputedStyle(document.documentElement).fontSize);
  }

  line(place) {
    const row = this.view[place],
      line = document.createElement("tr");
    line.setAttribute("aria-rowindex", place + 2);
    for (const name of this.columns) line.append(this.cell(row, name));
    return line;
  }

  cell(row, name) {
    if (name === "key") {
      const cell = element("td", ""),
        button = element("button", text(this.rows, "key", row));
      button.type = "button";
      button.addEventListener("click", () => this.open(row, this.view));
      cell.append(button);
      return cell;
    }
    const values = this.rows.metrics[name];
    const cell = element("td", values ? shortNumber(values[row]) : text(this.rows, name, row));
    cell.classList.toggle("number", Boolean(values));
    cell.classList.toggle("other", this.isOther(name));
    cell.classList.toggle("failed", name === "status" && cell.textContent !== "ok");
    return cell;
  }
}
