
// The explorer of latents: found, sorted, linked, compared. Of the list one page of rows exists at a time.
// #latent=<dictionary>/<number> leads to a latent, #compare=<dictionary>/<number>+... to several side by side.
(() => {
  const root = document.getElementById("explorer");
  if (!root || !latentPage) return;
  const { COLUMNS, DASH, blocks, called, glimpse, link, said, signed } = latentPage;
  const PAGE = 25, MOST = 4;
  const form = root.querySelector("form");
  const control = (name) => form.elements.namedItem(name);
  const [list, head, count] = [root.querySelector("tbody"), root.querySelector("thead tr"), root.querySelector(".count")];
  const [detail, pager, beside] = [root.querySelector(".detail"), root.querySelector(".pager"), root.querySelector(".beside")];
  const narrow = matchMedia("(max-width: 900px)");
  const ALIASES = { loss: "ablation_loss", changed: "ablation_changed", images: "n_images" };

  let name = "", book = null, columns = null, order = [], page = 0, chosen = -1, down = true;
  let compared = [];

  // Choosing -----------------------------------------------------------------------------------------------------
  const open = (wanted) => {
    if (wanted === name && book) return;
    name = wanted;
    book = latentPage.open(name);
    columns = book.columns;
    control("dictionary").value = name;
    const before = control("class").value;
    const n = book.data.n_classes;
    control("class").replaceChildren(make("option", { value: "", text: "any" }),
      ...Array.from({ length: n }, (_, k) => make("option", { value: String(k), text: called(book, k) })));
    control("class").value = Number(before) < n ? before : "";
    control("class").closest("label").hidden = n === 0;
    control("token").closest("label").hidden = !book.data.contexts;
    chosen = -1;
    search();
  };

  // Latents with a word in one of their top contexts: the word itself or, where none is called so, words that begin with it.
  const holding = (text) => {
    const wanted = text.trim().toLowerCase();
    const names = book.data.words.map((word) => word.trim().toLowerCase());
    const fits = (test) => new Set(names.flatMap((word, k) => (test(word) ? [k] : [])));
    const same = fits((word) => word === wanted);
    const numbers = same.size ? same : fits((word) => word.startsWith(wanted));
    const inputs = new Set(Object.entries(book.data.contexts).flatMap(([input, words]) => (words.some((k) => numbers.has(k)) ? [Number(input)] : [])));
    return (i) => columns.images[i].some((input) => inputs.has(input));
  };

  // The text of the search box -> a list of tests, and what was not understood.
  const tests = (text) => {
    const unknown = [];
    const found = [];
    const tidy = text.toLowerCase().replace(/\bclass\s*[:=]?\s*(?=\d)/g, "class=").replace(/\s*(<=|>=|<|>|=)\s*/g, "$1");
    for (const word of tidy.split(/\s+/).filter(Boolean)) {
      const compared = word.match(/^([a-z_]+)(<=|>=|<|>|=)(-?[\d.]+(?:e-?\d+)?)$/);
      if (/^\d+$/.test(word)) found.push((i) => String(columns.latent[i]).startsWith(word));
      else if (/^#\d+$/.test(word)) found.push((i) => columns.latent[i] === Number(word.slice(1)));
      else if (compared) {
        const [, start, sign, limit] = compared;
        const key = ALIASES[start] ?? COLUMNS.find((column) => column.key.startsWith(start))?.key;
        if (!key) { unknown.push(word); continue; }
        const right = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b }[sign];
        found.push((i) => columns[key][i] !== null && right(columns[key][i], Number(limit)));
      } else unknown.push(word);
    }
    return [found, unknown];
  };

  const search = () => {
    const [wanted, unknown] = tests(control("search").value);
    const digit = control("class").value;
    if (digit !== "") wanted.push((i) => columns.class[i] === Number(digit));
    if (book.data.contexts && control("token").value.trim()) wanted.push(holding(control("token").value));
    const key = control("sort").value;
    const values = columns[key];
    order = columns.latent.map((_, i) => i).filter((i) => wanted.every((test) => test(i)));
    // Unknown values last in either direction; equal ones by selectivity.
    order.sort((a, b) => {
      if ((values[a] === null) !== (values[b] === null)) return values[a] === null ? 1 : -1;
      return (down ? values[b] - values[a] : values[a] - values[b]) || columns.selectivity[b] - columns.selectivity[a] || columns.latent[a] - columns.latent[b];
    });
    count.textContent = (unknown.length ? `Not understood: ${unknown.join(", ")}. ` : "") +
      `${order.length.toLocaleString("en")} of ${columns.latent.length.toLocaleString("en")} found.`;
    control("direction").textContent = down ? "\u2193 high to low" : "\u2191 low to high";
    for (const cell of head.cells) {
      if (cell.dataset.key === key) cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    turn(0);
    if (chosen < 0 && order.length) show(order[0]);
  };

  const turn = (to) => {
    const last = Math.max(0, Math.ceil(order.length / PAGE) - 1);
    page = Math.min(Math.max(to, 0), last);
    const rows = order.slice(page * PAGE, (page + 1) * PAGE).map((i) => {
      const row = make("tr", { "data-i": i }, make("td", { class: "name" }, link(book, columns.latent[i])),
        make("td", {}, glimpse(book, i)));
      for (const { key } of COLUMNS.filter((column) => column.shown && column.key !== "latent")) {
        const text = key === "class" ? called(book, columns.class[i]) : key === "ablation_loss" ? signed(columns[key][i]) : said(columns[key][i]);
        row.append(make("td", { class: "num", "data-key": key, text }));
      }
      return row;
    });
    list.replaceChildren(...rows);
    list.closest(".scroll").scrollTop = 0;
    const [back, where, on] = pager.children;
    where.textContent = order.length ? `${page * PAGE + 1}${DASH}${Math.min((page + 1) * PAGE, order.length)} of ${order.length.toLocaleString("en")}` : "none";
    back.disabled = page === 0;
    on.disabled = page === last;
    mark();
  };

  const mark = () => {
    for (const row of list.rows) {
      if (Number(row.dataset.i) === chosen) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  };

  // Several latents side by side, of any dictionaries: the same parts of each in one row.
  const same = ([of, number], book, i) => of === book.name && number === book.columns.latent[i];
  const comparing = (book, i) => {
    const there = compared.some((one) => same(one, book, i));
    const button = make("button", { type: "button", name: "compare", text: there ? "remove from comparison" : "compare", disabled: !there && compared.length >= MOST,
      title: compared.length >= MOST ? `${MOST} at most` : "Put it beside others" });
    button.addEventListener("click", () => {
      compared = there ? compared.filter((one) => !same(one, book, i)) : [...compared, [book.name, book.columns.latent[i]]];
      lay();
      button.replaceWith(comparing(book, i));
    });
    return button;
  };
  const lay = () => {
    beside.hidden = !compared.length;
    if (!compared.length) { beside.replaceChildren(); return; }
    const clear = make("button", { type: "button", text: "clear" });
    clear.addEventListener("click", () => { compared = []; lay(); if (chosen >= 0) show(chosen); });
    const address = `#compare=${compared.map(([of, number]) => `${of}/${number}`).join("+")}`;
    const columnsOf = compared.map(([of, number]) => {
      const book = latentPage.open(of);
      const i = book.at.get(number);
      return make("article", { "data-latent": `${of}/${number}` },
        make("h4", {}, link(book, number, `Latent ${number}`), make("span", { text: ` ${of}` })),
        ...["tops", "histogram", "effects", "scores"].map((part) => latentPage[part](book, i)));
    });
    beside.replaceChildren(
      make("header", {}, make("h3", { text: compared.length > 1 ? `${compared.length} latents side by side` : "Choose another to compare it with" }),
        make("nav", {}, make("a", { href: address, text: "link" }), clear)),
      make("div", { class: "scroll columns", tabindex: "0", role: "region", "aria-label": "Latents side by side" }, ...columnsOf));
  };

  const show = (i) => {
    chosen = i;
    const at = order.indexOf(i);
    const step = (to, text) => (to >= 0 && to < order.length && at >= 0 ? link(book, columns.latent[order[to]], text) : make("span", { class: "soft", text }));
    detail.replaceChildren(
      make("header", {}, make("h3", {}, `Latent ${columns.latent[i]} `, make("span", { text: book.data.n_classes ? `class ${called(book, columns.class[i])}` : "" })),
        make("nav", { "aria-label": "Latents in the list" }, make("a", { class: "to-list", href: "#explorer", text: "list" }), step(at - 1, "\u2039 previous"), link(book, columns.latent[i], "link"), step(at + 1, "next \u203a"), comparing(book, i)),
        make("p", { class: "note", text: `${name}; ${book.data.n_live.toLocaleString("en")} of ${book.data.n_latents.toLocaleString("en")} latents are live` })),
      ...latentPage.parts.map((part) => part(book, i)));
    mark();
  };

  // The address of a latent leads to it, whatever the filters hide.
  const follow = (moved) => {
    let target = "";
    try { target = decodeURIComponent(location.hash); } catch { return; }
    const several = target.match(/^#compare=(.+)$/);
    if (several) {
      const wanted = several[1].split("+").map((one) => one.match(/^(.+)\/(\d+)$/)).filter((one) => one && blocks.has(one[1]));
      compared = wanted.slice(0, MOST).map(([, of, number]) => [of, Number(number)]).filter(([of, number]) => latentPage.open(of).at.has(number));
      lay();
      if (!moved) root.scrollIntoView();
      return;
    }
    const match = target.match(/^#latent=(.+)\/(\d+)$/);
    if (!match || !blocks.has(match[1])) return;
    open(match[1]);
    const i = book.at.get(Number(match[2]));
    if (i === undefined) { count.textContent = `Latent ${match[2]} of ${name} is not shown: it is dead or beyond the limit.`; return; }
    const at = order.indexOf(i);
    if (at >= 0 && Math.floor(at / PAGE) !== page) turn(Math.floor(at / PAGE));
    show(i);
    if (!moved) root.scrollIntoView();
    else if (narrow.matches) detail.scrollIntoView();
  };

  // Wiring -------------------------------------------------------------------------------------------------------
  for (const { key, name: title } of COLUMNS) control("sort").append(make("option", { value: key, text: title }));
  control("sort").value = "selectivity";
  const sortBy = (key) => {
    down = control("sort").value === key ? !down : key !== "latent" && key !== "class";
    control("sort").value = key;
    search();
  };
  head.append(...[COLUMNS[0], null, ...COLUMNS.slice(1).filter((column) => column.shown)].map((column) => {
    if (!column) return make("th", { scope: "col", text: "top inputs" });
    const button = make("button", { type: "button", text: column.name });
    button.addEventListener("click", () => sortBy(column.key));
    return make("th", { scope: "col", class: column.key === "latent" ? null : "num", "data-key": column.key, title: column.hint }, button);
  }));
  control("dictionary").addEventListener("change", (event) => open(event.target.value));
  control("class").addEventListener("change", search);
  for (const box of ["search", "token"]) control(box).addEventListener("input", search);
  control("sort").addEventListener("change", () => { down = !["latent", "class"].includes(control("sort").value); search(); });
  control("direction").addEventListener("click", () => { down = !down; search(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  pager.children[0].addEventListener("click", () => turn(page - 1));
  pager.children[2].addEventListener("click", () => turn(page + 1));
  list.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !event.target.closest("a")) row.querySelector("a").click();
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const row = event.target.closest("tr");
    if (!step || !row) return;
    event.preventDefault();
    const next = list.rows[row.sectionRowIndex + step];
    if (next) next.querySelector("a").focus();
    else if (step > 0 ? page < Math.ceil(order.length / PAGE) - 1 : page > 0) {
      turn(page + step);
      list.rows[step > 0 ? 0 : list.rows.length - 1].querySelector("a").focus();
    }
  });
  // What was found, all pages of it, as a table.
  const found = () => order.map((i) => Object.fromEntries([["dictionary", name], ...COLUMNS.map(({ key }) => [key, key === "class" ? called(book, columns.class[i]) : columns[key][i]])]));
  const place = name.replace(/[^\w.-]+/g, "-");
  for (const [kind, save] of [["CSV", () => lensmithSave.hand(`lensmith-latents${place}.csv`, "text/csv", lensmithSave.csv(found()))],
    ["JSON", () => lensmithSave.hand(`lensmith-latents${place}.json`, "application/json", JSON.stringify({ table: "latents", rows: found() }, null, 1) + "\n")]]) {
    const button = make("button", { type: "button", text: kind, "data-save": kind.toLowerCase(), title: `The latents found, as ${kind}` });
    button.addEventListener("click", save);
    root.querySelector(".tools").append(button);
  }
  root.hidden = false;
  open(blocks.keys().next().value);
  follow(false);
  addEventListener("hashchange", () => follow(true));
})();
