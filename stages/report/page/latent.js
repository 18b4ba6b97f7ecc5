
// One latent: its inputs, what it fires for, what it does. Nothing here knows how many classes there are, how large an image is
// or how many greys it has: a dictionary's block says so. Where inputs are no images, their text is shown.
const latentPage = (() => {
  const SHADES = 35, DASH = "\u2013", DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  const parsed = (element) => JSON.parse(element.textContent);
  const given = document.getElementById("latent-images");
  if (!given) return null;
  const images = parsed(given);
  const hints = parsed(document.getElementById("latent-hints"));
  const blocks = new Map([...document.querySelectorAll("script[data-dictionary]")].map((e) => [e.dataset.dictionary, e]));

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
  // Numbers as the page packs them: counts with runs of zeros as letters, others as parts of the largest of their list.
  const counts = (text, n) => {
    const out = [];
    for (const [, number, run] of text.matchAll(/(\d+)|([a-z])/g)) {
      if (number) out.push(Number(number));
      else for (let k = run.charCodeAt(0) - 96; k > 0; k--) out.push(0);
    }
    while (out.length < n) out.push(0);
    return out;
  };
  const parts36 = ([largest, text]) => (text.match(/../g) ?? []).map((two) =>
    two === "--" ? null : Number((((parseInt(two, 36) - 647) / 647) * largest).toPrecision(3)));

  // A dictionary, unpacked when it is first asked for.
  const books = new Map();
  const open = (name) => {
    if (books.has(name)) return books.get(name);
    const data = parsed(blocks.get(name));
    const columns = data.columns;
    const n = columns.latent.length;
    const wide = data.n_classes * data.n_bins;
    columns.histogram = columns.histogram.map((text) => counts(text, wide));
    for (const key of ["activations", "logit_effect", "ablated_logits"]) columns[key] = columns[key].map(parts36);
    const small = (list) => (typeof list === "string" ? [...list].map((c) => DIGITS.indexOf(c)) : list);
    columns.classes = columns.classes.map(small);
    if (columns.positions) columns.positions = columns.positions.map(small);
    columns.neighbours = columns.neighbours.map((text) => text.split(" ").filter(Boolean).map((one) => {
      const [other, hundredths] = one.split(":");
      return [Number(other), hundredths === "" ? null : Number(hundredths) / 100];
    }));
    const medians = {};
    for (const { key } of COLUMNS) {
      const values = columns[key].filter((value) => value !== null).sort((a, b) => a - b);
      medians[key] = values.length ? values[Math.floor(values.length / 2)] : null;
    }
    const book = { name, data, columns, medians, n, at: new Map(columns.latent.map((number, i) => [number, i])) };
    books.set(name, book);
    return book;
  };
  const called = (book, k) => book.data.class_names?.[k] ?? String(k);
  const link = (book, number, text) => make("a", { href: `#latent=${book.name}/${number}`, text: text ?? String(number) });

  // Inputs beside each other, dark ink on white as on paper, with a transparent column between; texts where there are no images.
  const picture = (book, numbers, label) => {
    const texts = book.data.texts;
    if (texts) {
      const said = numbers.map((number) => texts[number] ?? "");
      return make("span", { class: "token-text", title: said.join(" \u00b7 "), text: said.join(" \u00b7 ") });
    }
    const [height, width] = book.data.shape;
    const canvas = make("canvas", { width: Math.max(1, numbers.length * (width + 1) - 1), height, role: "img", "aria-label": label });
    canvas.style.aspectRatio = `${canvas.width} / ${canvas.height}`;
    const context = canvas.getContext("2d");
    const top = Math.max(1, book.data.levels - 1);
    numbers.forEach((number, at) => {
      const pixels = context.createImageData(width, height);
      for (let i = 0; i < width * height; i++) {
        const shade = 255 - Math.round((Math.min(top, DIGITS.indexOf(images[number][i])) * 255) / top);
        pixels.data.set([shade, shade, shade, 255], 4 * i);
      }
      context.putImageData(pixels, at * (width + 1), 0);
    });
    return canvas;
  };
  // A context of words, the row's word marked, each shaded by the latent's activation there. Words are other people's text: they
  // are set as text, each isolated, so that none changes the direction or the markup of its neighbours.
  const context = (book, i, at, around) => {
    const { data, columns } = book;
    const words = data.contexts[columns.images[i][at]] ?? [];
    const heat = columns.heat[i][at] ?? "";
    const mark = columns.marked[i][at];
    const [from, to] = around === undefined ? [0, words.length] : [Math.max(0, mark - around), Math.min(words.length, mark + around + 1)];
    const line = make("span", { class: "context", dir: "ltr" });
    if (from > 0) line.append("\u2026 ");
    for (let k = from; k < to; k++) {
      const word = data.words[words[k]];
      const level = heat[k] === "-" || heat[k] === undefined ? null : parseInt(heat[k], 36) / SHADES;
      const value = level === null ? "no row: the first word of an input, or an attention sink" : `${said(level * columns.max_activation[i])}, ${said(100 * level, 0)}% of its largest`;
      line.append(make(k === mark ? "mark" : "bdi", { class: level === null ? "word none" : "word", title: `${word}: ${value}`,
        style: level ? `background-color: rgba(196, 52, 24, ${(0.06 + 0.5 * level).toFixed(2)})` : null, text: word }));
      if (data.gap && k + 1 < to) line.append(data.gap);
    }
    if (to < words.length) line.append(" \u2026");
    return line;
  };
  // What excites a latent most, at a glance.
  const glimpse = (book, i) =>
    book.data.contexts ? (book.columns.images[i].length ? context(book, i, 0, 5) : make("span", { text: DASH })) : picture(book, book.columns.images[i].slice(0, 3), "top inputs");

  // Activation at every position: over the image where positions form a grid, else a strip whose lower line marks the
  // position the image stands at.
  const heat = (book, levels, own) => {
    const [h, w] = book.data.grid;
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

  // One latent ---------------------------------------------------------------------------------------------------
  const part = (title, note, ...inside) =>
    make("section", {}, make("h4", { text: title }), ...inside, ...(note ? [make("p", { class: "note", text: note })] : []));

  const tops = (book, i) => {
    const { data, columns } = book;
    if (data.contexts) {
      const lines = columns.images[i].map((_, at) => make("figure", {}, context(book, i, at),
        make("figcaption", { text: `${said(columns.activations[i][at])}${columns.classes[i][at] < 0 ? "" : `, class ${called(book, columns.classes[i][at])}`}` })));
      return part("Contexts that excite it most", "One of each input, its strongest word outlined, with the activation below. Shade: the activation at each word; point at one to read it. The first word of an input has no row.",
        make("div", { class: "contexts" }, ...lines));
    }
    const positions = data.grid ? data.grid[0] * data.grid[1] : 0;
    const figures = columns.images[i].map((number, at) => {
      const digit = columns.classes[i][at];
      const box = make("div", { class: "picture" }, picture(book, [number], digit < 0 ? "class unknown" : `class ${called(book, digit)}`));
      if (data.grid && columns.heat[i].length >= (at + 1) * positions) {
        const levels = [...columns.heat[i].slice(at * positions, (at + 1) * positions)].map((c) => parseInt(c, 36));
        box.append(heat(book, levels, columns.positions[i][at]));
      }
      return make("figure", {}, box, make("figcaption", { text: said(columns.activations[i][at]) }));
    });
    const [h, w] = data.grid ?? [0, 0];
    const note = !data.grid ? "Activation below each image. No heat map: this hook point holds one vector per input, without positions."
      : h === 1 ? `Activation below each image; the strip is the activation at each of the ${w} token positions of its input, the grey mark the position the image stands at.`
      : `Activation below each image; red: where in the image, on the ${h} \u00d7 ${w} grid of the layer (hidden while you point at it).`;
    return part("Inputs that excite it most", note.replace(/image/g, data.texts ? "text" : "image"), make("div", { class: data.texts ? "pictures texts" : "pictures" }, ...figures));
  };

  // Small multiples: one row of bars per class, all to one scale.
  const histogram = (book, i) => {
    const { data, columns } = book;
    const counts = columns.histogram[i];
    const [bins, CLASSES] = [data.n_bins, data.n_classes];
    if (!CLASSES) return part("Activation by class", "The inputs have no classes.");
    const top = Math.max(...counts, 1), row = 17;
    const svg = draw("svg", { class: data.contexts ? "by-class named" : "by-class", height: CLASSES * row + 18, role: "img", "aria-label": "activation histogram by class" });
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
          draw("title", { text: `class ${called(book, digit)}, activation ${range}: ${n} rows` })));
      }
      svg.append(draw("text", { x: -8, y: base - 3, "text-anchor": "end", text: called(book, digit).slice(0, data.contexts ? 11 : 8) }), draw("text", { class: "soft", x: "100%", dx: 8, y: base - 3, text: sum.toLocaleString("en") }));
    }
    const end = CLASSES * row + 14;
    svg.append(draw("text", { class: "soft", x: 0, y: end, text: "0" }), draw("text", { class: "soft", x: "100%", y: end, "text-anchor": "end", text: said(columns.max_activation[i]) }));
    return part("Activation by class", `Rows by activation, where it fires; on the right their number, of ${data.n_rows.toLocaleString("en")} held-out rows. Highest bar: ${top.toLocaleString("en")} rows.${data.contexts ? " The class of a row is the word at its place." : ""}`, svg);
  };

  const bars = (book, values, title) => {
    const named = (k) => (values.length === book.data.n_classes ? called(book, k) : String(k)).slice(0, 8);
    // Of many outputs (a vocabulary) those that move most.
    const shown = values.map((value, k) => [value ?? 0, k]);
    if (shown.length > 24) shown.sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).splice(16);
    return drawnBars(shown, named, title, "logits");
  };
  const drawnBars = (shown, named, title, kind) => {
    const top = Math.max(...shown.map(([value]) => Math.abs(value)), 1e-12), row = 17;
    const svg = draw("svg", { class: kind, height: shown.length * row, role: "img", "aria-label": `${title}: ${shown.map(([v, k]) => `${named(k)}: ${signed(v)}`).join(", ")}` });
    svg.append(draw("line", { class: "zero", x1: "50%", x2: "50%", y1: 0, y2: shown.length * row }));
    shown.forEach(([value, output], k) => {
      const width = (48 * Math.abs(value)) / top;
      svg.append(
        draw("text", { x: -8, y: k * row + 12, "text-anchor": "end", text: named(output) }),
        draw("rect", { class: value < 0 ? "less" : "more", x: `${value < 0 ? 50 - width : 50}%`, width: `${width}%`, y: k * row + 3, height: row - 5 }, draw("title", { text: `output ${named(output)}: ${signed(value)}` })),
        draw("text", { class: "soft", x: "100%", dx: 6, y: k * row + 12, text: signed(value) }));
    });
    return make("div", {}, make("p", { class: "axis-name", text: title }), svg);
  };

  const effects = (book, i) => {
    const { columns } = book;
    const n = columns.ablation_n[i];
    const [loss, changed] = [columns.ablation_loss[i], columns.ablation_changed[i]];
    const logits = columns.ablated_logits[i];
    if (book.data.contexts) {
      const [up, down, more, less] = columns.moved[i];
      const words = (parts, title) => {
        const shown = parts.flatMap((list, lower) => (lower ? [...list].reverse() : list).map(([word, value]) => [value ?? 0, word]));
        return drawnBars(shown, (word) => book.data.words[word].slice(0, 12), title, "logits named");
      };
      const text = n ? `Set to 0, all else kept, on ${n} inputs in which it fires: loss ${signed(loss)} nats, ${said(100 * changed, 0)}% of answers change.` : "Not measured.";
      return part("What it does to the next word", "The words whose logits rise most and fall most. Added: its direction times its mean activation, at every word of a few inputs that are the same for all latents. Means over inputs; each panel to its own scale.",
        make("p", { text }), make("div", { class: "pair" }, words([up, down], "logits when added"), words([more, less], "logits when ablated")));
    }
    if (!logits.length) return part("What it does to the outputs", "Not measured.");
    const most = logits.reduce((best, value, k) => (Math.abs(value) > Math.abs(logits[best]) ? k : best), 0);
    const text = `Set to 0, all else kept, on ${n} examples for which it fires: loss ${signed(loss)} nats, ${said(100 * changed, 0)}% of answers change, logit ${logits.length === book.data.n_classes ? called(book, most) : most} moves most (${signed(logits[most])}).`;
    return part("What it does to the outputs", "Added: its direction times its mean activation, at every position of a few inputs that are the same for all latents. Means over examples; each panel to its own scale.",
      make("p", { text }), make("div", { class: "pair" }, bars(book, columns.logit_effect[i], "logits when added"), bars(book, logits, "logits when ablated")));
  };

  const neighbours = (book, i) => {
    const { columns } = book;
    const items = columns.neighbours[i].map(([number, cosine]) => {
      const at = book.at.get(number);
      const known = at !== undefined;
      return make("li", {}, known ? link(book, number, `latent ${number}`) : make("span", { text: `latent ${number}` }),
        make("span", { class: "soft", text: ` cosine ${said(cosine, 2)}${known && book.data.n_classes ? `, class ${called(book, columns.class[at])}` : ""}` }),
        ...(known ? [glimpse(book, at)] : []));
    });
    return part("Nearest decoder directions", "", make("ol", { class: "near" }, ...items));
  };

  const scores = (book, i) => {
    const items = COLUMNS.filter(({ key }) => key !== "latent" && key !== "class").map(({ key, name: title, hint }) =>
      make("div", { title: hint }, make("dt", { text: book.data.contexts ? title.replace("images", "contexts") : title }), make("dd", {}, said(book.columns[key][i]), make("span", { class: "soft", text: ` ${said(book.medians[key])}` }))));
    return part("Scores", "Beside each: the median over this dictionary's latents.", make("dl", {}, ...items));
  };

  // Latents of the dictionaries of the same place that share most of the inputs that excite this one.
  const byExample = (book, i) => {
    const mine = new Set(book.columns.images[i]);
    const place = book.name.split("/").slice(0, 2).join("/");
    const found = [];
    for (const name of blocks.keys()) {
      if (name.split("/").slice(0, 2).join("/") !== place) continue;
      const other = open(name);
      other.columns.images.forEach((theirs, j) => {
        if (other === book && j === i) return;
        const shared = theirs.filter((number) => mine.has(number)).length;
        if (shared) found.push([shared / (mine.size + theirs.length - shared), shared, other, j]);
      });
    }
    found.sort((a, b) => b[0] - a[0] || (b[2] === book) - (a[2] === book) || a[2].columns.latent[a[3]] - b[2].columns.latent[b[3]]);
    const items = found.slice(0, 5).map(([, shared, other, j]) => make("li", {},
      link(other, other.columns.latent[j], `${other === book ? "latent" : other.name.split("/").slice(2).join(" ")} ${other.columns.latent[j]}`),
      make("span", { class: "soft", text: ` ${shared} of ${mine.size} inputs shared` }), glimpse(other, j)));
    return part("Nearest by example", items.length ? "Share most of the inputs above, in every dictionary of this hook point." : "None shares an input with it.",
      make("ol", { class: "near alike" }, ...items));
  };

  return { COLUMNS, DASH, blocks, open, called, glimpse, link, picture, said, signed, parts: [tops, histogram, effects, neighbours, byExample, scores], tops, histogram, effects, scores };
})();
