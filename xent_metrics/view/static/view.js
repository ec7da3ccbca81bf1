"use strict";
// Sorting, filtering, reading tokens by keyboard, and following the folder. Without this script the pages show the same content.
const at = id => document.getElementById(id);
const root = document.documentElement, status = at("status");
const state = new URLSearchParams(location.hash.slice(1));   // sort, down, rows, columns: a sorted table is a link, too

function remember(changes) {
  for (const [key, value] of Object.entries(changes)) value === "" ? state.delete(key) : state.set(key, value);
  history.replaceState(null, "", "#" + state);
}

// A number where the cell begins with one; otherwise its text.
function key(row, column) {
  const cell = row.cells[column];
  if (!cell) return null;
  const text = cell.dataset.v ?? cell.textContent.trim().replaceAll(",", "").replace("−", "-");
  if (text === "" || text === "—") return null;
  const number = /^[-+]?(\d|\.\d|∞)/.test(text) && !/^\d{4}-\d\d/.test(text) ? parseFloat(text.replace("∞", "Infinity")) : NaN;
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

// Empty cells come last in both directions.
function sort(table, column, down) {
  const rows = [...table.tBodies[0].rows].map(row => [key(row, column), row]);
  rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b));
  table.tBodies[0].append(...rows.map(([, row]) => row));
  [...table.tHead.rows[0].cells].forEach((head, i) => {
    i === column ? head.setAttribute("aria-sort", down ? "descending" : "ascending") : head.removeAttribute("aria-sort");
    head.querySelector("button.sort").textContent = i !== column ? "↕" : down ? "↓" : "↑";
  });
}

function filter() {
  const rows = (at("rows")?.value ?? "").toLowerCase(), columns = (at("columns")?.value ?? "").toLowerCase();
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const row of table.tBodies[0].rows) row.hidden = rows !== "" && !row.textContent.toLowerCase().includes(rows);
    if (!at("columns")) continue;
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      if (!head.classList.contains("task")) return;
      const hidden = columns !== "" && !head.textContent.toLowerCase().includes(columns);
      if (head.hidden === hidden) return;
      head.hidden = hidden;
      for (const row of table.tBodies[0].rows) row.cells[i].hidden = hidden;
    });
  }
}

function enhance() {
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button"; button.className = "sort"; button.textContent = "↕";
      button.setAttribute("aria-label", `Sort by ${head.textContent.trim()}`);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        sort(table, column, down);
        remember({ sort: String(column), down: down ? "1" : "" });
      });
      head.append(" ", button);
    });
    const column = parseInt(state.get("sort"), 10);
    if (column >= 0 && column < table.tHead.rows[0].cells.length) sort(table, column, state.has("down"));
  }
  if (["rows", "columns"].some(id => at(id)?.value)) filter();
}

for (const id of ["rows", "columns"]) {
  const input = at(id);
  if (!input) continue;
  at("controls").hidden = false;
  input.value = state.get(id) ?? "";
  input.addEventListener("input", () => { filter(); remember({ [id]: input.value }); });
}

// Tokens: their losses are in their titles.
const text = at("text"), detail = at("detail");
if (text && detail) {
  const tokens = [...text.children];
  let chosen = -1;
  const choose = i => {
    if (i < 0 || i >= tokens.length) return;
    tokens[chosen]?.classList.remove("chosen");
    tokens[chosen = i].classList.add("chosen");
    tokens[i].scrollIntoView({ block: "nearest" });
    detail.textContent = tokens[i].title;
  };
  text.addEventListener("pointerover", event => choose(tokens.indexOf(event.target)));
  text.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { choose(Math.max(0, chosen + step)); event.preventDefault(); }
  });
}

// The folder: ask for its version, and put the page's new content in place of the old when it has changed.
let asking = false;
async function follow() {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const { version } = await (await fetch("version.json", { cache: "no-store" })).json();
    if (version !== root.dataset.version) await replace();
    else if (status.dataset.lost) { status.textContent = ""; delete status.dataset.lost; }
  } catch {
    status.textContent = "The server doesn't answer; this is what it last said.";
    status.dataset.lost = "yes";
  } finally {
    asking = false;
  }
}

async function replace() {
  const page = new DOMParser().parseFromString(await (await fetch(location.pathname, { cache: "no-store" })).text(), "text/html");
  root.dataset.version = page.documentElement.dataset.version;
  const old = at("content"), fresh = page.getElementById("content");
  if (!("swap" in old.dataset)) { status.textContent = "The folder has changed. Reload to see it."; return; }
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const scrolled = [...old.querySelectorAll(".scroll")].map(part => [part.scrollLeft, part.scrollTop]);
  old.replaceChildren(...fresh.childNodes);
  enhance();
  [...old.querySelectorAll(".scroll")].forEach((part, i) => scrolled[i] && part.scrollTo(...scrolled[i]));
  if (focused) [...old.querySelectorAll("a")].find(link => link.getAttribute("href") === focused)?.focus();
  status.textContent = `Updated at ${new Date().toLocaleTimeString("en-GB")}.`;
}

enhance();
if ("live" in root.dataset) setInterval(follow, 2000);
root.dataset.ready = "yes";
