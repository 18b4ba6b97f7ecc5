
// The explorer of latents. A dictionary's data lie in the page as JSON, in columns, and are parsed when it is chosen; of the
// list one page of rows exists at a time. #latent=<dictionary>/<number> leads to a latent, so every choice is a link.
(() => {
  const root = document.getElementById("explorer");
  if (!root) return;
  const PAGE = 25, CLASSES = 10, SHADES = 35, DASH = "\u2013";
  const form = root.querySelector("form");
  const control = (name) => form.elements.namedItem(name);
  const [list, head, count] = [root.querySelector("tbody"), root.querySelector("thead tr"), root.querySelector(".count")];
  const [detail, pager] = [root.querySelector(".detail"), root.querySelector(".pager")];
  const parsed = (element) => JSON.parse(element.textContent);
  const images = parsed(document.getElementById("latent-images"));
  const hints = parsed(document.getElementById("latent-hints"));
  const blocks = new Map([...document.querySelectorAll("script[data-dictionary]")].map((e) => [e.dataset.dictionary, e]));
  const narrow = matchMedia("(max-width: 900px)");

  // Sortable columns: key in the data, name, whether the list shows it, what it is.
  const COLUMNS = [
    ["latent", "latent", true, "its number"],
    ["class", "class", true, "the class it is most correlated with"],
    ["selectivity", "selectivity", true],
    ["density", "density", true],
    ["monosemanticity", "mono\u00adsemanticity", true],
    ["ablation_loss", "loss if ablated", true, "mean change of the loss, nats"],
    ["ablation_changed", "answers changed if ablated", false, "share of examples"],
    ["purity", "purity", false],
    ["entropy", "entropy", false],
    ["max_cosine", "max cosine", false],
    ["mean_activation", "mean activation", false],
    ["max_activation", "max activation", false],
    ["n_images", "images it fires for", false, "distinct ones"],
  ].map(([key, name, shown, hint]) => ({ key, name, shown, hint: hint ?? hints[key] ?? "" }));
  const ALIASES = { loss: "ablation_loss", changed: "ablation_changed", images: "n_images" };

  let name = "", data = null, columns = null, order = [], page = 0, chosen = -1, down = true, medians = {};

  // Elements -----------------------------------------------------------------------------------------------------
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
  const draw = (tag, given, ...inside) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(given)) {
      if (key === "text") element.textContent = value;
      else element.setAttribute(key, value);
    }
    element.append(...inside);
    return element;
  };
  const said = (value, places = 3) => {
    if (value === null || value === undefined) return DASH;
    if (Number.isInteger(value)) return value.toLocaleString("en").replace("-", "\u2212");
    const size = Math.abs(value);
    const fixed = size >= 100 ? 0 : size >= 10 ? Math.min(places, 1) : size >= 1 ? Math.min(places, 2) : places;
    const text = size >= 0.001 || size === 0 ? value.toFixed(fixed) : value.toExponential(1);
    return text.replace(/-/g, "\u2212");
  };
  const signed = (value) => (value > 0 ? "+" : "") + said(value);
  const link = (number, text) => make("a", { href: `#latent=${name}/${number}`, text: text ?? String(number) });

  // Dark ink on white, as on paper, beside each other with a transparent column between.
  const picture = (numbers, label) => {
    const side = numbers.length ? Math.sqrt(images[numbers[0]].length) : 1;
    const canvas = make("canvas", { width: Math.max(1, numbers.length * (side + 1) - 1), height: side, role: "img", "aria-label": label });
    const context = canvas.getContext("2d");
    numbers.forEach((number, at) => {
      const pixels = context.createImageData(side, side);
      for (let i = 0; i < side * side; i++) {
        const shade = 255 - Math.round((parseInt(images[number][i], 17) * 255) / 16);
        pixels.data.set([shade, shade, shade, 255], 4 * i);
      }
      context.putImageData(pixels, at * (side + 1), 0);
    });
    return canvas;
  };
  // Activation at every position: over the image where positions form a grid, else a strip whose lower line marks the
  // position the image stands at.
  const heat = (levels, own) => {
    const [h, w] = data.grid;
    const strip = h === 1;
    const canvas = make("canvas", { class: strip ? "heat-strip" : "heat-map", width: w, height: strip ? 3 : h, role: "img",
      "aria-label": `activation at each of ${h * w} positions` });
    const context = canvas.getContext("2d");
    levels.forEach((level, at) => {
      context.fillStyle = `rgba(196, 52, 24, ${strip ? 0.08 + (0.92 * level) / SHADES : (0.78 * level) / SHADES})`;
      context.fillRect(at % w, Math.floor(at / w), 1, strip ? 2 : 1);
    });
    if (strip && own !== undefined) {
      context.fillStyle = "rgb(120, 128, 136)";
      context.fillRect(own, 2, 1, 1);
    }
    return canvas;
  };

  // Choosing -----------------------------------------------------------------------------------------------------
  const open = (wanted) => {
    if (wanted === name && data) return;
    name = wanted;
    data = parsed(blocks.get(name));
    columns = data.columns;
    control("dictionary").value = name;
    medians = {};
    for (const { key } of COLUMNS) {
      const values = columns[key].filter((value) => value !== null).sort((a, b) => a - b);
      medians[key] = values.length ? values[Math.floor(values.length / 2)] : null;
    }
    chosen = -1;
    search();
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
      const row = make("tr", { "data-i": i }, make("td", { class: "name" }, link(columns.latent[i])),
        make("td", {}, picture(columns.images[i].slice(0, 3), "top images")));
      for (const { key } of COLUMNS.filter((column) => column.shown && column.key !== "latent")) {
        row.append(make("td", { class: "num", "data-key": key, text: key === "ablation_loss" ? signed(columns[key][i]) : said(columns[key][i]) }));
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

  // One latent ---------------------------------------------------------------------------------------------------
  const part = (title, note, ...inside) =>
    make("section", {}, make("h4", { text: title }), ...inside, ...(note ? [make("p", { class: "note", text: note })] : []));

  const tops = (i) => {
    const positions = data.grid ? data.grid[0] * data.grid[1] : 0;
    const figures = columns.images[i].map((number, at) => {
      const digit = columns.classes[i][at];
      const box = make("div", { class: "picture" }, picture([number], digit < 0 ? "class unknown" : `class ${digit}`));
      if (data.grid) {
        const levels = [...columns.heat[i].slice(at * positions, (at + 1) * positions)].map((c) => parseInt(c, 36));
        box.append(heat(levels, columns.positions[i][at]));
      }
      return make("figure", {}, box, make("figcaption", { text: said(columns.activations[i][at]) }));
    });
    const [h, w] = data.grid ?? [0, 0];
    const note = !data.grid ? "Activation below each image. No heat map: this hook point holds one vector per input, without positions."
      : h === 1 ? `Activation below each image; the strip is the activation at each of the ${w} token positions of its input, the grey mark the position the image stands at.`
      : `Activation below each image; red: where in the image, on the ${h} \u00d7 ${w} grid of the layer (hidden while you point at it).`;
    return part("Images that excite it most", note, make("div", { class: "pictures" }, ...figures));
  };

  // Small multiples: one row of bars per class, all to one scale.
  const histogram = (i) => {
    const counts = columns.histogram[i];
    const bins = counts.length / CLASSES;
    const top = Math.max(...counts, 1), row = 17;
    const svg = draw("svg", { class: "by-class", height: CLASSES * row + 18, role: "img", "aria-label": "activation histogram by class" });
    for (let digit = 0; digit < CLASSES; digit++) {
      const base = (digit + 1) * row;
      let sum = 0;
      svg.append(draw("line", { class: "grid", x1: 0, x2: "100%", y1: base, y2: base }));
      for (let bin = 0; bin < bins; bin++) {
        const n = counts[bin * CLASSES + digit];
        sum += n;
        if (!n) continue;
        const height = Math.max(1, (14 * n) / top);
        const range = `${said((columns.max_activation[i] * bin) / bins)} to ${said((columns.max_activation[i] * (bin + 1)) / bins)}`;
        svg.append(draw("rect", { class: digit === columns.class[i] ? "bar best" : "bar", x: `${(100 * bin) / bins + 0.4}%`, width: `${100 / bins - 0.8}%`, y: base - height, height },
          draw("title", { text: `class ${digit}, activation ${range}: ${n} rows` })));
      }
      svg.append(draw("text", { x: -8, y: base - 3, "text-anchor": "end", text: digit }), draw("text", { class: "soft", x: "100%", dx: 8, y: base - 3, text: sum.toLocaleString("en") }));
    }
    const end = CLASSES * row + 14;
    svg.append(draw("text", { class: "soft", x: 0, y: end, text: "0" }), draw("text", { class: "soft", x: "100%", y: end, "text-anchor": "end", text: said(columns.max_activation[i]) }));
    return part("Activation by class", `Rows by activation, where it fires; on the right their number, of ${data.n_rows.toLocaleString("en")} held-out rows. Highest bar: ${top.toLocaleString("en")} rows.`, svg);
  };

  const bars = (values, title) => {
    const top = Math.max(...values.map(Math.abs), 1e-12), row = 17;
    const svg = draw("svg", { class: "logits", height: values.length * row, role: "img", "aria-label": `${title}: ${values.map((v, k) => `${k}: ${signed(v)}`).join(", ")}` });
    svg.append(draw("line", { class: "zero", x1: "50%", x2: "50%", y1: 0, y2: values.length * row }));
    values.forEach((value, k) => {
      const width = (48 * Math.abs(value)) / top;
      svg.append(
        draw("text", { x: -8, y: k * row + 12, "text-anchor": "end", text: k }),
        draw("rect", { class: value < 0 ? "less" : "more", x: `${value < 0 ? 50 - width : 50}%`, width: `${width}%`, y: k * row + 3, height: row - 5 }, draw("title", { text: `output ${k}: ${signed(value)}` })),
        draw("text", { class: "soft", x: "100%", dx: 6, y: k * row + 12, text: signed(value) }));
    });
    return make("div", {}, make("p", { class: "axis-name", text: title }), svg);
  };

  const effects = (i) => {
    const n = columns.ablation_n[i];
    const [loss, changed] = [columns.ablation_loss[i], columns.ablation_changed[i]];
    const logits = columns.ablated_logits[i];
    const most = logits.reduce((best, value, k) => (Math.abs(value) > Math.abs(logits[best]) ? k : best), 0);
    const text = `Set to 0, all else kept, on ${n} examples for which it fires: loss ${signed(loss)} nats, ${said(100 * changed, 0)}% of answers change, logit ${most} moves most (${signed(logits[most])}).`;
    return part("What it does to the outputs", "Added: its direction times its mean activation, at every position of a few inputs that are the same for all latents. Means over examples; each panel to its own scale.",
      make("p", { text }), make("div", { class: "pair" }, bars(columns.logit_effect[i], "logits when added"), bars(logits, "logits when ablated")));
  };

  const neighbours = (i) => {
    const items = columns.neighbours[i].map(([number, cosine]) => {
      const at = columns.latent.indexOf(number);
      const known = at >= 0;
      return make("li", {}, known ? link(number, `latent ${number}`) : make("span", { text: `latent ${number}` }),
        make("span", { class: "soft", text: ` cosine ${said(cosine, 2)}${known ? `, class ${columns.class[at]}` : ""}` }),
        ...(known ? [picture(columns.images[at].slice(0, 3), "its top images")] : []));
    });
    return part("Nearest decoder directions", "", make("ol", { class: "near" }, ...items));
  };

  const scores = (i) => {
    const items = COLUMNS.filter(({ key }) => key !== "latent" && key !== "class").map(({ key, name: title, hint }) =>
      make("div", { title: hint }, make("dt", { text: title }), make("dd", {}, said(columns[key][i]), make("span", { class: "soft", text: ` ${said(medians[key])}` }))));
    return part("Scores", "Beside each: the median over this dictionary's latents.", make("dl", {}, ...items));
  };

  const show = (i) => {
    chosen = i;
    const at = order.indexOf(i);
    const step = (to, text) => (to >= 0 && to < order.length && at >= 0 ? link(columns.latent[order[to]], text) : make("span", { class: "soft", text }));
    detail.replaceChildren(
      make("header", {}, make("h3", {}, `Latent ${columns.latent[i]} `, make("span", { text: `class ${columns.class[i]}` })),
        make("nav", { "aria-label": "Latents in the list" }, make("a", { class: "to-list", href: "#explorer", text: "list" }), step(at - 1, "\u2039 previous"), link(columns.latent[i], "link"), step(at + 1, "next \u203a")),
        make("p", { class: "note", text: `${name}; ${data.n_live.toLocaleString("en")} of ${data.n_latents.toLocaleString("en")} latents are live` })),
      tops(i), histogram(i), effects(i), neighbours(i), scores(i));
    mark();
  };

  // The address of a latent leads to it, whatever the filters hide.
  const follow = (moved) => {
    let target = "";
    try { target = decodeURIComponent(location.hash); } catch { return; }
    const match = target.match(/^#latent=(.+)\/(\d+)$/);
    if (!match || !blocks.has(match[1])) return;
    open(match[1]);
    const i = columns.latent.indexOf(Number(match[2]));
    if (i < 0) { count.textContent = `Latent ${match[2]} of ${name} is not shown: it is dead or beyond the limit.`; return; }
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
    if (!column) return make("th", { scope: "col", text: "top images" });
    const button = make("button", { type: "button", text: column.name });
    button.addEventListener("click", () => sortBy(column.key));
    return make("th", { scope: "col", class: column.key === "latent" ? null : "num", "data-key": column.key, title: column.hint }, button);
  }));
  control("dictionary").addEventListener("change", (event) => open(event.target.value));
  control("class").addEventListener("change", search);
  control("search").addEventListener("input", search);
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
  root.hidden = false;
  open(blocks.keys().next().value);
  follow(false);
  addEventListener("hashchange", () => follow(true));
})();
