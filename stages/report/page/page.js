"use strict";
// What the whole page shares: tables that sort, and a list of contents that knows where the reader is. Without scripts the
// page is the same, but for these.
const make = (tag, given = {}, ...inside) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "text") element.textContent = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...inside);
  return element;
};

for (const table of document.querySelectorAll("table[data-table]")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("num");
      const before = head.getAttribute("aria-sort");
      const down = before ? before === "ascending" : numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const number = (text) => (text === "-inf" || Number.isNaN(Number(text)) ? -Infinity : Number(text));
      const order = (a, b) => (numeric ? number(key(a)) - number(key(b)) || 0 : key(a).localeCompare(key(b)));
      const rows = [...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });
}

// A frame that hides columns says how many, until its end is reached.
const frames = [...document.querySelectorAll(".scroll")];
const measure = (frame) => {
  const table = frame.querySelector(":scope > table");
  const hidden = frame.scrollWidth - frame.clientWidth - frame.scrollLeft > 4;
  frame.classList.toggle("more", hidden);
  const right = frame.getBoundingClientRect().right;
  const heads = table?.tHead ? [...table.tHead.rows[table.tHead.rows.length - 1].cells] : [];
  const n = heads.filter((cell) => !cell.hidden && cell.getBoundingClientRect().right > right + 4).length;
  let hint = frame.nextElementSibling;
  if (!hint?.classList.contains("hint")) frame.after((hint = make("p", { class: "hint", "aria-hidden": "true" })));
  hint.textContent = !hidden ? "" : n ? `${n} more column${n > 1 ? "s" : ""} to the right: scroll \u2192` : "scroll \u2192";
};
const watcher = new ResizeObserver((entries) => entries.forEach((entry) => measure(entry.target.closest(".scroll"))));
for (const frame of frames) {
  watcher.observe(frame);
  if (frame.firstElementChild) watcher.observe(frame.firstElementChild);
  frame.addEventListener("scroll", () => measure(frame), { passive: true });
}

// The list of contents: the section that is being read is marked, and in view.
const contents = document.getElementById("contents");
const links = new Map([...contents.querySelectorAll("a")].map((a) => [a.hash.slice(1), a]));
const sections = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
const locate = () => {
  const line = contents.getBoundingClientRect().bottom + 40;
  const end = innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
  const here = end ? sections.at(-1) : sections.filter((one) => one.getBoundingClientRect().top <= line).at(-1);
  for (const [id, a] of links) {
    if (id === here?.id) {
      if (a.hasAttribute("aria-current")) continue;
      a.setAttribute("aria-current", "true");
      const list = a.closest("ul");
      list.scrollLeft = a.offsetLeft - list.clientWidth / 2 + a.offsetWidth / 2;
    } else a.removeAttribute("aria-current");
  }
};
addEventListener("scroll", locate, { passive: true });
addEventListener("resize", locate);
locate();
// A link to a section inside a closed fold opens it.
addEventListener("hashchange", () => document.getElementById(location.hash.slice(1))?.closest("details")?.setAttribute("open", ""));
