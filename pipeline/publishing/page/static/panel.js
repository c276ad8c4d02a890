"use strict";

/* The page's panel: its controls, the legend, and the values of a pixel. */

Object.assign(Page.prototype, {
  buildPanel() {
    const {properties, id} = this.item;
    document.title = id;
    find("title").textContent = id;
    const area = this.hectares(properties["mibf:pixels"]);
    const facts = [properties.created?.slice(0, 10), `${this.grid.columns} × ${this.grid.rows} px`, area];
    find("subtitle").textContent = facts.filter(Boolean).join(" · ");
    for (const choice of this.choices()) {
      const input = make("input", {type: "radio", name: "layer", value: choice.id});
      input.addEventListener("change", () => this.change({layer: choice.id, band: 0}));
      find("layers").append(make("label", {className: "choice"}, input, choice.title, make("small", {}, choice.note || "")));
    }
    find("compare").append(make("option", {value: ""}, "nothing"));
    for (const choice of this.choices()) {
      find("compare").append(make("option", {value: choice.id}, choice.title));
    }
    find("compare").addEventListener("change", (event) => this.change({compare: event.target.value}));
    find("band").addEventListener("change", (event) => this.change({band: Number(event.target.value)}));
    find("opacity").addEventListener("input", (event) => this.change({opacity: Number(event.target.value)}));
    this.buildOverlays();
    this.buildSwipe();
    this.buildButtons();
    find("map").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target === find("map")) {
        this.inspect(this.map.getView().getCenter());
      }
    });
    const item = make("a", {href: ITEM}, "STAC item");
    const version = properties["processing:version"];
    find("footer").append(item, ` · mibf ${version || ""}`);
    find("panel").hidden = false;
  },

  change(values) {
    Object.assign(this.state, values);
    this.update();
  },

  buildButtons() {
    const fit = make("button", {type: "button", title: "Show the entire map", "aria-label": "Show the entire map"}, "⤢");
    fit.addEventListener("click", () => this.fit());
    document.querySelector(".ol-zoom").append(fit);
    for (const [button, open] of [["close-panel", false], ["open-panel", true]]) {
      find(button).addEventListener("click", () => {
        find("panel").hidden = !open;
        find("open-panel").hidden = open;
        find(open ? "close-panel" : "open-panel").focus();
      });
    }
  },

  buildSwipe() {
    const handle = find("swipe");
    const to = (percent) => {
      this.state.swipe = Math.round(10 * Math.min(100, Math.max(0, percent))) / 10;
      this.placeSwipe();
      this.map.render();
    };
    handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", (event) => {
      if (handle.hasPointerCapture(event.pointerId)) {
        to((100 * event.clientX) / innerWidth);
      }
    });
    handle.addEventListener("pointerup", () => this.writeHash());
    handle.addEventListener("keydown", (event) => {
      const step = {ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -10, PageUp: 10}[event.key];
      if (step || event.key === "Home" || event.key === "End") {
        event.preventDefault();
        event.stopPropagation(); // the map would pan
        to(step ? this.state.swipe + step : event.key === "Home" ? 0 : 100);
        this.writeHash();
      }
    });
  },

  placeSwipe() {
    const handle = find("swipe");
    handle.hidden = !this.isComparing;
    handle.style.left = `${this.state.swipe}%`;
    handle.setAttribute("aria-valuenow", this.state.swipe);
  },

  // --- overlays ---

  buildOverlays() {
    const add = (id, title, layer, short = "", note = "") => {
      const input = make("input", {type: "checkbox", value: id});
      input.addEventListener("change", () => {
        this.state.overlays[input.checked ? "add" : "delete"](id);
        this.update();
      });
      find("overlays").append(make("label", {className: "choice"}, input, title, make("small", {title: note}, short)));
      find("overlays-section").hidden = false;
      this.overlays.set(id, layer);
      this.drawn.getLayers().push(layer);
    };
    for (const [id, title] of [["labels", "Labels"], ["split", "Subsets of the labels"]]) {
      const asset = this.pictures.get(id);
      if (asset) {
        const step = asset["mibf:step"];
        const layer = this.picture(asset, {className: "ol-overlay", opacity: id === "split" ? 0.7 : 1});
        add(id, title, layer, step > 1 ? `1 : ${step}` : "", `A pixel stands for ${step} × ${step} pixels of the map`);
      }
    }
    const tiles = this.item.assets["tiles.json"];
    if (tiles) {
      const style = (feature) => this.tileStyle(feature);
      const layer = new ol.layer.Vector({source: new ol.source.Vector(), style, visible: false});
      add("tiles", "Tiles that failed", layer);
      layer.on("change:visible", () => this.loadTiles(tiles, layer.getSource()));
    }
  },

  tileStyle(feature) {
    const color = STATES[feature.get("state")] || STATES.pending;
    return new ol.style.Style({
      stroke: new ol.style.Stroke({color, width: 2}), fill: new ol.style.Fill({color: `${color}40`}),
    });
  },

  async loadTiles(asset, source) {
    if (this.tiles) {
      return;
    }
    this.tiles = this.guard(fetch(new URL(asset.href, this.base), {cache: "no-cache"}).then((response) => response.json()));
    const {tiles, total} = await this.tiles || {tiles: [], total: 0};
    for (const {window: [y, x, height, width], ...values} of tiles) {
      const corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]];
      const ring = corners.map(([column, row]) => this.grid.toView(column, row));
      source.addFeature(new ol.Feature({geometry: new ol.geom.Polygon([[...ring, ring[0]]]), ...values}));
    }
    const note = find("overlays").querySelector("[value=tiles]").parentElement.querySelector("small");
    note.textContent = tiles.length < total ? `${tiles.length} of ${total.toLocaleString("en")}` : total.toLocaleString("en");
  },

  // --- the panel's state and the legend ---

  updatePanel() {
    const {layer, band, compare, opacity, overlays} = this.state;
    for (const input of find("layers").querySelectorAll("input")) {
      input.checked = input.value === layer;
    }
    for (const input of find("overlays").querySelectorAll("input")) {
      input.checked = overlays.has(input.value);
    }
    const bands = this.products.get(layer)?.bands || [];
    find("band-row").hidden = bands.length < 2;
    find("band").replaceChildren(...bands.map((name, value) => make("option", {value}, name)));
    find("band").value = band;
    find("compare").value = compare;
    find("opacity").value = opacity;
    find("opacity-value").textContent = `${opacity} %`;
    this.placeSwipe();
  },

  updateLegend() {
    const parts = [];
    const {layer, compare, overlays} = this.state;
    const shown = [layer, compare].map((id) => this.products.get(id)).filter(Boolean);
    if (shown.some((product) => product.isCategorical) || overlays.has("labels")) {
      parts.push(this.classLegend());
    }
    for (const product of new Set(shown)) {
      if (!product.isCategorical) {
        parts.push(this.rampLegend(product));
      }
    }
    if (overlays.has("split")) {
      const rows = SUBSETS.map(([name, color]) => make("li", {className: "choice"}, swatch(color), name));
      parts.push(make("ul", {className: "classes"}, ...rows));
    }
    if (!parts.length) {
      parts.push(make("p", {className: "hint"}, "A small picture of the source, published with the map."));
    }
    find("legend").replaceChildren(...parts);
  },

  classLegend() {
    const counts = this.item.properties["mibf:class_pixels"] || {};
    const rows = this.classes.map((entry) => {
      const button = make("button", {type: "button", "aria-pressed": String(!this.hidden.has(entry.value)), title: "Show or hide"});
      const area = counts[entry.value] === undefined ? "" : this.hectares(counts[entry.value]);
      button.append(swatch(`#${entry.color_hint}`), make("span", {}, entry.title || entry.name), make("small", {}, area));
      button.addEventListener("click", () => this.toggleClass(entry.value));
      return make("li", {}, button);
    });
    const list = make("ul", {className: "classes"}, ...rows);
    const areas = Object.keys(counts).length && this.hectares(1);
    return areas ? make("div", {}, list, make("p", {className: "hint"}, "Areas count pixels; they are not estimates.")) : list;
  },

  toggleClass(value) {
    this.hidden[this.hidden.has(value) ? "delete" : "add"](value);
    for (const [key, layers] of this.layers) {
      const product = this.products.get(key.split(" ")[0]);
      if (product?.isCategorical) {
        layers.forEach((layer) => layer.setStyle(this.style(product)));
      }
    }
    const position = this.classes.findIndex((entry) => entry.value === value);
    this.updateLegend();
    find("legend").querySelectorAll(".classes button")[position].focus();
  },

  rampLegend(product) {
    const canvas = make("canvas", {className: "ramp", width: 255, height: 1, role: "img"});
    const context = canvas.getContext("2d");
    const stops = RAMPS[UNCERTAIN.includes(product.name) ? "down" : "up"];
    for (let x = 0; x < 255; x += 1) {
      context.fillStyle = `rgb(${ramp(stops, x / 254).slice(0, 3).join(" ")})`;
      context.fillRect(x, 0, 1, 1);
    }
    const title = `${TITLES[product.name] || product.name}${product.unit ? `, ${product.unit}s` : ""}`;
    const [low, high] = [make("span"), make("span")];
    const range = product.bits.length ? Promise.resolve([0, product.bits.length]) : this.guard(product.findRange());
    range.then((found) => {
      const [lowest, highest] = found || [NaN, NaN]; // NaN: what is wrong was reported
      const [start, end] = [lowest, highest].map((value) => (Number.isInteger(value) ? String(value) : format(value)));
      low.textContent = start;
      high.textContent = end;
      canvas.setAttribute("aria-label", `${title}: ${start} to ${end}`);
    });
    return make("div", {}, make("p", {className: "hint"}, title), canvas, make("p", {className: "ends"}, low, high));
  },

  /** The area of a number of pixels; empty if their size is unknown or differs, as on a grid in degrees. */
  hectares(pixels) {
    const metres = [...this.products.values()][0].metres;
    if (!metres || pixels === undefined) {
      return "";
    }
    const area = (pixels * metres ** 2) / 10000;
    return `${area.toLocaleString("en", {maximumFractionDigits: area < 100 ? 1 : 0})} ha`;
  },

  // --- the values of a pixel ---

  async inspect(coordinate) {
    const [column, row] = this.grid.toPixel(coordinate).map(Math.floor);
    if (column < 0 || row < 0 || column >= this.grid.columns || row >= this.grid.rows) {
      return;
    }
    const query = ++this.query;
    const ring = [[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]].map(([x, y]) => this.grid.toView(column + x, row + y));
    this.marker.clear();
    this.marker.addFeature(new ol.Feature(new ol.geom.Polygon([ring])));
    find("pixel").setAttribute("aria-busy", "true");
    const values = new Map();
    await Promise.all([...this.products.values()].map(async (product) => {
      values.set(product.name, await this.guard(product.pixel(column, row)));
    }));
    if (query === this.query) { // otherwise another pixel was chosen meanwhile
      find("pixel").replaceChildren(...this.pixelParts(column, row, values));
      find("pixel").removeAttribute("aria-busy");
      find("pixel").scrollIntoView({block: "nearest"});
    }
  },

  pixelParts(column, row, values) {
    const rows = [];
    const add = (title, text) => rows.push(make("dt", {}, title), make("dd", {}, text));
    const parts = [];
    const entry = (id) => this.classes.find((one) => one.value === id);
    for (const [name, product] of this.products) {
      const found = values.get(name);
      if (!found) {
        add(TITLES[name] || name, "cannot be read");
      } else if (found.every((value) => value === null)) {
        add(TITLES[name] || name, "no data");
      } else if (name === "class") {
        const known = entry(found[0]);
        parts.push(make("p", {className: "name"}, swatch(`#${known?.color_hint || "888888"}`), known?.title || `class ${found[0]}`));
      } else if (product.isCategorical) {
        add(TITLES[name] || name, entry(found[0])?.title || String(found[0]));
      } else if (product.bits.length) {
        add(TITLES[name] || name, product.bits.filter((_, bit) => Math.floor(found[0] / 2 ** bit) % 2).join(", "));
      } else if (found.length === 1) {
        add(TITLES[name] || name, `${format(found[0])}${product.unit ? ` ${product.unit}` : ""}`);
      } else {
        parts.push(this.bars(name, product, found));
      }
    }
    if (this.grid.located) {
      add("Position", this.grid.format(column + 0.5, row + 0.5));
    }
    add("Column, row", `${column}, ${row}`);
    const feature = this.overlays.get("tiles")?.getSource().getFeaturesAtCoordinate(this.grid.toView(column + 0.5, row + 0.5))[0];
    if (feature && this.state.overlays.has("tiles")) {
      add("Tile", `${feature.get("state")}, ${feature.get("attempts")} attempts: ${feature.get("cause")}`);
    }
    const [first] = parts;
    return [...(first?.className === "name" ? parts.splice(0, 1) : []), make("dl", {}, ...rows), ...parts];
  },

  /** The values of a product with several bands, highest first. */
  bars(name, product, found) {
    const order = [...found.keys()].sort((one, other) => found[other] - found[one]).slice(0, 12);
    const rows = order.map((band) => {
      const meter = make("meter", {min: 0, max: 1, value: found[band] ?? 0, "aria-label": product.bands[band]});
      return make("li", {}, meter, product.bands[band], make("small", {}, found[band] === null ? "no data" : format(found[band])));
    });
    return make("div", {}, make("p", {className: "hint"}, TITLES[name] || name), make("ul", {className: "bars"}, ...rows));
  },
});

/** Show a message; with a button that reloads the page if that helps. */
function report(text, reload = false) {
  find("message-text").textContent = text;
  find("message").className = "problem";
  find("reload").hidden = !reload;
  find("message").hidden = false;
}

async function fetchItem() {
  const response = await fetch(ITEM, {cache: "no-store"}).catch(() => {
    throw new MapError("The server does not respond. Check that it is running, then reload.");
  });
  if (response.status === 404 || response.status === 403) {
    throw new MapError(
      `No map is published here: ${ITEM} is missing. If the map is being replaced, reload in a moment; otherwise run \`mibf map\`.`,
      true
    );
  }
  if (!response.ok) {
    throw new MapError(`${ITEM}: the server answered ${response.status}.`);
  }
  return response.json().catch(() => {
    throw new MapError(`${ITEM}: is not valid JSON. Run \`mibf map\` to publish the map again.`, true);
  });
}

function useTheme() {
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const show = () => find("theme").setAttribute("aria-label", dark() ? "Use the light theme" : "Use the dark theme");
  try {
    document.documentElement.dataset.theme = localStorage.getItem("mibf-theme") || "";
  } catch { // storage may be blocked
  }
  find("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    try {
      localStorage.setItem("mibf-theme", document.documentElement.dataset.theme);
    } catch { // storage may be blocked
    }
    show();
  });
  show();
}

async function main() {
  useTheme();
  find("reload").addEventListener("click", () => location.reload());
  if (location.protocol === "file:") {
    report(
      "Browsers do not let a page read files from a disk. Run `mibf view` with the folder of this page, " +
      "or put the folder on a web server or into a bucket."
    );
    return;
  }
  try {
    const item = await fetchItem();
    const page = new Page(item);
    page.start();
    window.mibfPage = page; // for tests, and for the curious
    find("message").hidden = find("message").className !== "problem";
  } catch (error) {
    report(error instanceof MapError ? error.message : `The map cannot be shown (${error.message}).`, Boolean(error.replaced));
    if (!(error instanceof MapError)) {
      throw error;
    }
  }
}

main();
