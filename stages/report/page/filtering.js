
// Which tasks are shown: the matrix, and below it the plots and the table of single tasks.
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const KEYS = ["target", "kind", "split"];
  const table = document.querySelector('table[data-table="matrix"]');
  const heads = [...table.tHead.rows[0].cells];
  const first = heads.find((head) => head.dataset.split)?.dataset.split;
  const others = [...document.querySelectorAll("main .panel[data-split], main tr[data-split]")];
  const told = form.querySelector("[role=status]");
  const sign = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(2);

  const apply = () => {
    const wanted = KEYS.map((key) => [key, form.elements.namedItem(key).value]).filter(([, value]) => value !== "");
    const fits = (element) => wanted.every(([key, value]) => element.dataset[key] === value);
    const shown = heads.map((head) => head.dataset.split === undefined || fits(head));
    heads.forEach((head, i) => { head.hidden = !shown[i]; });
    for (const row of table.tBodies[0].rows) {
      const values = [];
      [...row.cells].forEach((cell, i) => {
        cell.hidden = !shown[i];
        const counts = heads[i].dataset.split !== undefined && shown[i] && (wanted.length || heads[i].dataset.split === first);
        if (counts && cell.dataset.key !== undefined) values.push(Number(cell.dataset.key));
      });
      const mean = row.querySelector(".mean");
      const value = values.reduce((sum, one) => sum + one, 0) / values.length;
      mean.textContent = values.length ? sign(value) : "\u2013";
      mean.dataset.key = values.length ? value : "-inf";
    }
    const key = (row) => { const value = Number(row.querySelector(".mean").dataset.key); return Number.isFinite(value) ? value : -1e9; };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => key(b) - key(a)));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    for (const element of others) element.hidden = !fits(element);
    const n = heads.filter((head, i) => head.dataset.split !== undefined && shown[i]).length;
    told.textContent = wanted.length ? `${n} task${n === 1 ? "" : "s"}; methods in the order of their mean over ${n === 1 ? "it" : "them"}` : "";
    for (const group of document.querySelectorAll("main .panels")) {
      const empty = group.querySelector(":scope > .panel[data-split]") && !group.querySelector(":scope > .panel:not([hidden])");
      group.classList.toggle("none-left", Boolean(empty));
    }
  };
  // What a pointer reads on hover, a finger reads by a tap.
  table.tBodies[0].addEventListener("click", (event) => {
    const cell = event.target.closest("td.mark");
    if (cell) document.getElementById("cell").textContent = cell.title;
  });
  form.addEventListener("change", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
})();
