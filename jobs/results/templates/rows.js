"use strict";
// The rows of the page: columns of one length. A view is the numbers of some rows, in an order.

function embedded(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

async function readRows() {
  const url = "data:application/octet-stream;base64," + document.getElementById("packed-rows").textContent;
  const unpacked = (await fetch(url)).body.pipeThrough(new DecompressionStream("deflate"));
  const columns = await new Response(unpacked).json();
  return {
    ...columns,
    count: columns.key.codes.length,
    lowerKeys: columns.key.names.map((key) => key.toLowerCase()),
    metrics: Object.fromEntries(
      Object.entries(columns.metrics).map(([name, values]) => [name, Float32Array.from(values, (v) => v ?? NaN)]),
    ),
    isPictured: new Set(columns.pictured),
  };
}

function text(rows, column, row) {
  return rows[column].names[rows[column].codes[row]];
}

/** Where the output of a row lies; the place of its key's stem is kept by a zero character. */
function place(rows, row) {
  const key = text(rows, "key", row);
  const [, head, extension] = /^(.*)\.(.*)$/s.exec(key) ?? [null, "", key];
  return text(rows, "place", row)?.replace("\0", () => (extension.includes("/") ? key : head));
}

/** The rows that pass the filters {edit, status, key, metric, from, to}, in the order of `sort`; falling, with a "-". */
function makeView(rows, filters) {
  const keys = filters.key && rows.lowerKeys.map((key) => key.includes(filters.key.toLowerCase()));
  const edit = rows.edit.names.indexOf(filters.edit),
    status = rows.status.names.indexOf(filters.status);
  const values = rows.metrics[filters.metric];
  const low = number(filters.from, -Infinity),
    high = number(filters.to, Infinity);
  const bounded = values && (low > -Infinity || high < Infinity);
  const view = [];
  for (let row = 0; row < rows.count; row++) {
    if (filters.edit && rows.edit.codes[row] !== edit) continue;
    if (filters.status && rows.status.codes[row] !== status) continue;
    if (keys && !keys[rows.key.codes[row]]) continue;
    if (bounded && !(values[row] >= low && values[row] <= high)) continue;
    view.push(row);
  }
  return sorted(rows, view, filters.sort);
}

function number(field, otherwise) {
  return field === "" || field === undefined ? otherwise : Number(field);
}

function sorted(rows, view, sort) {
  if (!sort) return view;
  const name = sort.replace(/^-/, ""),
    sign = sort.startsWith("-") ? -1 : 1;
  const values = rows.metrics[name] ?? ranks(rows[name]);
  const measured = view.filter((row) => !Number.isNaN(values[row]));
  const others = view.filter((row) => Number.isNaN(values[row]));
  return measured.sort((a, b) => sign * (values[a] - values[b])).concat(others);
}

/** By row, where its text stands in the alphabet of the column's texts. */
function ranks({ names, codes }) {
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const alphabet = names.map((_, code) => code).sort((a, b) => compare(names[a] ?? "", names[b] ?? ""));
  const rank = new Int32Array(names.length);
  alphabet.forEach((code, place) => (rank[code] = place));
  return Float64Array.from(codes, (code) => rank[code]);
}

function shortNumber(value) {
  return Number.isNaN(value) ? "" : String(Number(value.toPrecision(4)));
}
