
// Downloads: every table as CSV and JSON, every figure as SVG and PNG. All of it is made here, from what is on the page.
(() => {
  const hand = (name, kind, content) => {
    const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: kind }));
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  const plain = (text) => text.replace(/\u00ad/g, "").replace(/\u2212/g, "-").replace(/\s+/g, " ").trim();

  // Rows as objects. A column of numbers gives its number and, where more is shown (an interval), that text beside it.
  const records = (table) => {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells].map((cell) => plain(cell.textContent) || "outcome");
    const names = heads.map((name, i) => (heads.indexOf(name) === i ? name : `${name} (${i + 1})`));
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    return rows.map((row) => {
      const out = {};
      [...row.cells].forEach((cell, i) => {
        if (cell.hidden) return;
        const text = plain(cell.textContent);
        const value = cell.dataset.key === undefined ? NaN : Number(cell.dataset.key);
        const number = cell.classList.contains("num") || cell.classList.contains("mark");
        const bare = Number(text);
        if (number && Number.isFinite(value)) {
          out[names[i]] = value;
          if (!(Math.abs(bare - value) < 0.01) || /[^\d.+-]/.test(text)) out[`${names[i]} as shown`] = text;
        } else if (number && text !== "" && Number.isFinite(bare)) out[names[i]] = bare;
        else out[names[i]] = number && /^\u2013?$/.test(text) ? null : text;
      });
      return out;
    });
  };
  const csv = (rows) => {
    const names = [...new Set(rows.flatMap(Object.keys))];
    // A cell that a spreadsheet would take for a formula is text.
    const cell = (value) => {
      let text = value === null || value === undefined ? "" : String(value);
      if (typeof value === "string" && /^[=+@\t\r-]/.test(text) && !Number.isFinite(Number(text.split(" ")[0]))) text = `'${text}`;
      return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
    };
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  };
  window.lensmithSave = { records, csv, hand };

  const button = (text, title, act) => {
    const element = make("button", { type: "button", text, title, "data-save": text.toLowerCase() });
    element.addEventListener("click", act);
    return element;
  };
  const tools = (...buttons) => make("p", { class: "tools" }, ...buttons);

  for (const table of document.querySelectorAll("main table")) {
    if (table.closest("#explorer, noscript")) continue;
    const name = table.dataset.table ?? table.dataset.plot;
    const { file, command } = table.dataset;
    const saved = (kind) => () => {
      const rows = records(table);
      if (kind === "csv") hand(`lensmith-${name}.csv`, "text/csv", csv(rows));
      else hand(`lensmith-${name}.json`, "application/json", JSON.stringify({ table: name, file, command, rows }, null, 1) + "\n");
    };
    table.closest(".scroll").before(tools(
      button("CSV", `This table as CSV; all digits: ${file}`, saved("csv")), button("JSON", `This table as JSON; all digits: ${file}`, saved("json"))));
  }

  // A figure that stands alone: the page's styles written into it, and its margins, which hang over on the page, inside.
  const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "opacity", "font-family",
    "font-size", "font-weight", "text-anchor", "transform", "paint-order"];
  const alone = (svg) => {
    const box = svg.getBoundingClientRect();
    let [left, top, right, bottom] = [box.left, box.top, box.right, box.bottom];
    for (const part of svg.querySelectorAll("text, rect, path, circle, line")) {
      const b = part.getBoundingClientRect();
      if (!b.width && !b.height) continue;
      [left, top, right, bottom] = [Math.min(left, b.left), Math.min(top, b.top), Math.max(right, b.right), Math.max(bottom, b.bottom)];
    }
    const [dx, dy] = [box.left - left + 8, box.top - top + 8];
    const [width, height] = [Math.ceil(right - left + 16), Math.ceil(bottom - top + 16)];
    const copy = svg.cloneNode(true);
    const [from, to] = [[svg, ...svg.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
    from.forEach((part, i) => {
      const style = getComputedStyle(part);
      const said = STYLES.map((name) => [name, style.getPropertyValue(name)]).filter(([name, value]) => value && !(name === "transform" && value === "none"));
      to[i].setAttribute("style", said.map(([name, value]) => `${name}:${value}`).join(";"));
    });
    for (const [name, value] of [["x", dx], ["y", dy], ["width", box.width], ["height", box.height], ["overflow", "visible"]]) copy.setAttribute(name, value);
    const ground = getComputedStyle(document.documentElement).getPropertyValue("--paper").trim();
    const head = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`;
    const inside = new XMLSerializer().serializeToString(copy);
    return { text: `${head}<rect width="100%" height="100%" fill="${ground}"/>${inside}</svg>`, width, height };
  };
  window.lensmithSave.alone = alone;
  const png = (drawn, name) => {
    const image = new Image();
    image.onload = () => {
      const canvas = make("canvas", { width: 2 * drawn.width, height: 2 * drawn.height });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => hand(`${name}.png`, "image/png", blob));
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(drawn.text)}`;
  };
  let count = 0;
  for (const figure of document.querySelectorAll("main figure.plot, main figure.drawing")) {
    const svg = figure.querySelector("svg");
    if (!svg) continue;
    const name = `lensmith-${figure.dataset.plot ?? "circuit"}-${++count}`;
    figure.append(tools(button("SVG", "This figure as SVG", () => hand(`${name}.svg`, "image/svg+xml", alone(svg).text)),
      button("PNG", "This figure as PNG, twice its size", () => png(alone(svg), name))));
  }
})();
