"use strict";
// Pairs of pictures, before and after: tiles, and one pair at a time with a slider between.

const SMALL_PIXELS = 64;
let decodedPictures = null;

function picture(rows, row, side) {
  decodedPictures ??= embedded("packed-pictures");
  const data = decodedPictures[side][side === "before" ? rows.key.codes[row] : row];
  return data && `data:image/webp;base64,${data}`;
}

/** Of images of few pixels every pixel is shown, as smoothing would hide what the net made. */
function sharpen(image) {
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= SMALL_PIXELS));
  return image;
}

class Tiles {
  constructor(list, rows, open) {
    Object.assign(this, { list, rows, open });
    this.seen = new IntersectionObserver((entries) => entries.forEach((entry) => this.load(entry)), {
      rootMargin: "300px",
    });
  }

  /** Show these rows, with the value of a metric where one is given. */
  show(view, metric) {
    this.view = view;
    this.seen.disconnect();
    this.list.replaceChildren(...view.map((row) => this.tile(row, metric)));
  }

  tile(row, metric) {
    const item = document.createElement("li"),
      button = document.createElement("button");
    const pair = document.createElement("span"),
      key = document.createElement("span"),
      facts = document.createElement("span");
    button.type = "button";
    pair.className = "pair";
    key.className = "key";
    key.textContent = text(this.rows, "key", row);
    const status = text(this.rows, "status", row),
      value = metric && shortNumber(this.rows.metrics[metric][row]);
    facts.textContent = [text(this.rows, "edit", row), status !== "ok" && status, value && `${metric} ${value}`]
      .filter(Boolean)
      .join(", ");
    pair.append(this.half(row, "before"), this.half(row, "after"));
    button.append(pair, key, facts);
    button.addEventListener("click", () => this.open(row, this.view));
    item.append(button);
    return item;
  }

  half(row, side) {
    if (this.rows.isPictured.has(row) && !this.rows.missing[row]?.[side === "before" ? 0 : 1]) {
      const image = sharpen(new Image());
      image.alt = "";
      image.decoding = "async";
      Object.assign(image.dataset, { row, side });
      this.seen.observe(image);
      return image;
    }
    const none = document.createElement("span");
    none.className = "none";
    none.textContent = this.rows.isPictured.has(row) ? "none" : "not here";
    return none;
  }

  load({ isIntersecting, target }) {
    if (!isIntersecting) return;
    target.src = picture(this.rows, Number(target.dataset.row), target.dataset.side);
    this.seen.unobserve(target);
  }
}

class OneImage {
  constructor(dialog, rows) {
    Object.assign(this, { dialog, rows, view: [], row: null });
    this.compare = dialog.querySelector(".compare");
    this.divide = dialog.querySelector("#divide");
    this.divide.addEventListener("input", () => this.compare.style.setProperty("--at", `${this.divide.value}%`));
    dialog.querySelectorAll("img").forEach(sharpen);
    dialog.querySelector("#previous").addEventListener("click", () => this.step(-1));
    dialog.querySelector("#next").addEventListener("click", () => this.step(1));
  }

  /** Show a row; the buttons go through the rows `among` which it is. */
  open(row, among) {
    this.view = among;
    this.show(row);
    this.dialog.showModal();
    if (!this.compare.hidden) this.divide.focus();
  }

  step(by) {
    const place = this.view.indexOf(this.row) + by;
    if (place >= 0 && place < this.view.length) this.show(this.view[place]);
  }

  show(row) {
    this.row = row;
    const pictured = this.rows.isPictured.has(row),
      number = this.view.indexOf(row);
    this.dialog.querySelector("h2").textContent = `${text(this.rows, "key", row)}, ${text(this.rows, "edit", row)}`;
    this.dialog.querySelector("#previous").disabled = number <= 0;
    this.dialog.querySelector("#next").disabled = number < 0 || number === this.view.length - 1;
    const sources = pictured ? ["before", "after"].map((side) => picture(this.rows, row, side)) : [];
    this.compare.hidden = this.dialog.querySelector(".ends").hidden = !sources.some(Boolean);
    ["before", "after"].forEach((side, index) => this.put(side, sources[index]));
    const missing = pictured ? (this.rows.missing[row] ?? []) : ["This report holds no pictures of this row."];
    const items = ["Before: ", "After: "].map(
      (side, index) => missing[index] && (pictured ? side : "") + missing[index],
    );
    this.dialog.querySelector(".missing").replaceChildren(...items.filter(Boolean).map((item) => element("li", item)));
    this.dialog
      .querySelector("dl")
      .replaceChildren(...this.facts(row).flatMap(([name, fact]) => [element("dt", name), element("dd", fact)]));
  }

  put(side, source) {
    const image = this.compare.querySelector(`.${side}`);
    image.hidden = !source;
    if (source) image.src = source;
  }

  facts(row) {
    const measured = Object.entries(this.rows.metrics).map(([name, values]) => [name, shortNumber(values[row])]);
    return [
      ["status", text(this.rows, "status", row)],
      ["error", text(this.rows, "error", row)],
      ...measured,
      ["output", place(this.rows, row)],
    ].filter(([, fact]) => fact);
  }
}

function element(kind, content) {
  const made = document.createElement(kind);
  made.textContent = content;
  return made;
}
