"use strict";

/* The page: layers, legend, pixel values and overlays of the map whose item is next to this page. Text is set as text. */

const ITEM = "item.json";
/** Milliseconds between checks whether the map was replaced. */
const CHECK = 30000;
const TITLES = {
  class: "Class",
  second_class: "Second class",
  confidence: "Confidence",
  probabilities: "Probability",
  entropy: "Entropy",
  mutual_information: "Mutual information",
  kl: "KL divergence",
  gate: "Source weight",
  sources: "Sources with data",
};
/** Colour maps: viridis for what is better if high, magma (both of matplotlib) for what is worse. */
const RAMPS = {
  up: ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"],
  down: ["#000004", "#1d1147", "#51127c", "#822681", "#b73779", "#e75263", "#fc8961", "#fec488", "#fcfdbf"],
};
const UNCERTAIN = ["entropy", "mutual_information", "kl"];
const SUBSETS = [["Training", "#1f77b4"], ["Validation", "#ff7f0e"], ["Test", "#d62728"]];
const STATES = {failed: "#d62728", stale: "#ff7f0e", pending: "#7f7f7f", retried: "#9467bd"};
const TRANSPARENT = [0, 0, 0, 0];

const find = (id) => document.getElementById(id);

/** Make an element; properties are set, attributes with a hyphen too, and text is never parsed. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) {
      element.setAttribute(name, value);
    } else {
      element[name] = value;
    }
  }
  element.append(...children);
  return element;
}

function swatch(color) {
  const element = make("span", {className: "swatch"});
  element.style.background = color;
  return element;
}

function rgb(color) {
  return [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
}

/** The colour at a share, 0 to 1, of a ramp, as [red, green, blue, alpha]. */
function ramp(colors, share) {
  const at = share * (colors.length - 1);
  const [one, other] = [Math.floor(at), Math.ceil(at)].map((index) => rgb(colors[index]));
  return [...one.map((value, index) => Math.round(value + (other[index] - value) * (at % 1))), 1];
}

/** Format a value with as many digits as its size asks for. */
function format(value) {
  return Math.abs(value) >= 100 ? value.toFixed(0) : value.toFixed(Math.abs(value) >= 10 ? 1 : 3);
}

class Page {
  constructor(item) {
    this.item = item;
    this.base = new URL(ITEM, location.href).href;
    this.grid = new Grid(item.properties);
    this.products = this.readProducts();
    this.pictures = this.readPictures();
    this.hidden = new Set(); // class ids that the legend hides
    this.state = {layer: this.choices()[0].id, band: 0, compare: "", opacity: 100, swipe: 50, overlays: new Set()};
    this.layers = new Map(); // of the map, by id and band
    this.overlays = new Map();
    this.query = 0;
  }

  // --- what the item has ---

  readProducts() {
    const found = new Map();
    for (const [key, asset] of Object.entries(this.item.assets)) {
      if (asset.roles?.includes("data") && /\.tif$/.test(asset.href)) {
        const name = key.replace(/_y\d+_x\d+$/, "");
        found.set(name, [...(found.get(name) || []), asset]);
      }
    }
    if (!found.size) {
      throw new MapError(`${ITEM}: lists no files of a map. Run \`mibf map\` to publish it again.`);
    }
    return new Map([...found].map(([name, assets]) => [name, new Product(name, assets, this.base, this.grid)]));
  }

  /** Small pictures of sources, labels and split that were published with the page. */
  readPictures() {
    const found = new Map();
    for (const [key, asset] of Object.entries(this.item.assets)) {
      if (asset["mibf:overview"]) {
        found.set(asset["mibf:overview"] === "source" ? `source ${asset.title}` : asset["mibf:overview"], {...asset, key});
      }
    }
    return found;
  }

  /** What may be shown as a layer. */
  choices() {
    const products = [...this.products.keys()].map((id) => ({id, title: TITLES[id] || id}));
    const sources = [...this.pictures].filter(([id]) => id.startsWith("source "));
    return [...products, ...sources.map(([id, asset]) => ({id, title: asset.title, note: "overview"}))];
  }

  get classes() {
    const product = [...this.products.values()].find((one) => one.isCategorical);
    return product ? product.classes : [];
  }

  /** Whether two layers are shown; a layer is not compared with itself. */
  get isComparing() {
    return this.state.compare !== "" && this.state.compare !== this.state.layer;
  }

  // --- layers of the map ---

  palette(product) {
    const colors = new Array(256).fill(TRANSPARENT);
    if (product.isCategorical) {
      for (const entry of product.classes) {
        colors[entry.value] = this.hidden.has(entry.value) ? TRANSPARENT : [...rgb(`#${entry.color_hint}`), 1];
      }
    } else {
      const last = product.bits.length || 254;
      const stops = RAMPS[UNCERTAIN.includes(product.name) ? "down" : "up"];
      for (let index = 0; index <= last; index += 1) {
        colors[index] = ramp(stops, index / last);
      }
    }
    return colors;
  }

  style(product) {
    return {color: ["palette", ["*", ["band", 1], 255], this.palette(product)]};
  }

  /** The layers that show a choice: one for each file. */
  shown(id, band) {
    const key = this.products.has(id) ? `${id} ${band}` : id;
    if (!this.layers.has(key)) {
      const made = this.products.has(id) ? this.productLayers(this.products.get(id), band) : [this.picture(this.pictures.get(id))];
      for (const layer of made) {
        layer.on("prerender", (event) => this.clip(layer, event));
        layer.on("postrender", (event) => event.context.disable(event.context.SCISSOR_TEST));
        this.rasters.getLayers().push(layer);
      }
      this.layers.set(key, made);
    }
    return this.layers.get(key);
  }

  productLayers(product, band) {
    const {mirrored, rows} = this.grid;
    return product.files.map((file) => {
      const levels = [...new Array(file.levels).keys()].reverse();
      const top = mirrored ? file.y + file.rows - rows : -file.y;
      const origins = levels.map((level) => [file.x, mirrored ? file.y + file.shape(level)[0] * 2 ** level - rows : -file.y]);
      const extent = [file.x, top - file.rows, file.x + file.columns, top];
      const tileGrid = new ol.tilegrid.TileGrid({extent, origins, resolutions: levels.map((level) => 2 ** level), tileSize: TILE});
      const source = new ol.source.DataTile({
        projection: this.projection,
        tileGrid,
        bandCount: 1,
        interpolate: false,
        wrapX: false,
        transition: 0,
        loader: (z, x, y, options) => this.tile(product.bytes(file, levels[z], x, y, band, options?.signal)),
      });
      return new ol.layer.WebGLTile({source, extent, style: this.style(product), visible: false});
    });
  }

  /** The layer of a small picture: one tile. */
  picture(asset, options = {}) {
    const step = asset["mibf:step"];
    const [rows, columns] = asset["proj:shape"];
    const load = async () => {
      const url = new URL(asset.href, this.base);
      url.searchParams.set("v", asset["file:checksum"].slice(4, 20));
      const response = await fetch(url).catch(() => null);
      if (!response?.ok) {
        throw new MapError(`${asset.key}: the file is missing.`, true);
      }
      const picture = await createImageBitmap(await response.blob(), {premultiplyAlpha: "none"});
      const canvas = new OffscreenCanvas(columns, rows);
      const context = canvas.getContext("2d", {willReadFrequently: true});
      if (this.grid.mirrored) {
        context.setTransform(1, 0, 0, -1, 0, rows);
      }
      context.drawImage(picture, 0, 0);
      return new Uint8Array(context.getImageData(0, 0, columns, rows).data.buffer);
    };
    const top = this.grid.mirrored ? rows * step - this.grid.rows : 0;
    const extent = [0, top - rows * step, columns * step, top];
    const tileGrid = new ol.tilegrid.TileGrid({extent, origin: [0, top], resolutions: [step], tileSize: [columns, rows]});
    const source = new ol.source.DataTile({
      projection: this.projection, tileGrid, interpolate: false, wrapX: false, transition: 0, loader: () => this.tile(load()),
    });
    return new ol.layer.WebGLTile({source, visible: false, ...options});
  }

  /** Where two layers are compared, each is drawn on its side of the divider. */
  clip(layer, event) {
    const {swipe} = this.state;
    if (!this.isComparing) {
      return;
    }
    const gl = event.context;
    const [width, height] = [gl.drawingBufferWidth, gl.drawingBufferHeight];
    const at = Math.round((width * swipe) / 100);
    gl.enable(gl.SCISSOR_TEST);
    if (layer.get("side") === "left") {
      gl.scissor(0, 0, at, height);
    } else {
      gl.scissor(at, 0, width - at, height);
    }
  }

  /** Wait for something that is read; report what goes wrong, and return undefined then. */
  async guard(work) {
    try {
      return await work;
    } catch (error) {
      const known = error instanceof MapError;
      if (error.name !== "AbortError" && !(known && error.replaced && await this.checkReplaced())) {
        report(known ? error.message : `A file of the map cannot be read (${error.message}). Reload the page.`);
      }
      return undefined;
    }
  }

  /** The pixels of a tile, for OpenLayers; it does not request a tile again that failed. */
  async tile(work) {
    const pixels = await this.guard(work);
    if (pixels === undefined) {
      throw new Error("the tile was not read");
    }
    return pixels;
  }

  /** Check whether the item next to the page is still that of the map on the screen; say so if not. */
  async checkReplaced() {
    const found = await fetchItem().catch((error) => error);
    const key = (item) => JSON.stringify([item.properties?.["mibf:content"], item.properties?.created]);
    if (found instanceof Error ? !found.replaced : key(found) === key(this.item)) {
      return false;
    }
    report(
      found instanceof Error
        ? "This map is being replaced, or was removed. Reload the page in a moment."
        : "This map has been replaced by a newer one. Reload the page to see it.",
      true
    );
    return true;
  }

  // --- the map ---

  start() {
    const {grid} = this;
    const first = [...this.products.values()][0];
    const metres = grid.metres(first.metres);
    this.projection = new ol.proj.Projection({
      code: "grid", units: "m", extent: grid.extent, getPointResolution: (resolution) => resolution * (metres || 1),
    });
    this.rasters = new ol.layer.Group();
    this.drawn = new ol.layer.Group();
    this.marker = new ol.source.Vector();
    const controls = [new ol.control.Zoom({zoomInTipLabel: "Zoom in", zoomOutTipLabel: "Zoom out"})];
    if (metres) {
      controls.push(new ol.control.ScaleLine());
    }
    const outline = [
      new ol.style.Style({stroke: new ol.style.Stroke({color: "#fff", width: 4})}),
      new ol.style.Style({stroke: new ol.style.Stroke({color: "#000", width: 2})}),
    ];
    const layers = [this.rasters, this.drawn, new ol.layer.Vector({source: this.marker, style: outline})];
    const size = Math.max(grid.rows, grid.columns);
    const view = new ol.View({
      projection: this.projection, rotation: grid.rotation, minResolution: 1 / 40, maxResolution: Math.max(size / 100, 1),
      center: ol.extent.getCenter(grid.extent), resolution: 1, extent: grid.extent, constrainOnlyCenter: true,
      showFullExtent: true, smoothExtentConstraint: false,
    });
    this.map = new ol.Map({target: "map", controls, layers, view, keyboardEventTarget: find("map")});
    this.map.on("singleclick", (event) => this.inspect(event.coordinate));
    this.map.on("pointermove", (event) => this.showCoordinates(event.coordinate));
    this.map.on("moveend", () => this.writeHash());
    this.fit();
    this.buildPanel();
    this.readHash();
    this.update();
    addEventListener("hashchange", () => this.readHash() && this.update());
    setInterval(() => document.hidden || this.checkReplaced(), CHECK);
  }

  /** Show the entire map beside the panel. */
  fit() {
    const wide = innerWidth > 700;
    const polygon = ol.geom.Polygon.fromExtent(this.grid.extent);
    this.map.getView().fit(polygon, {padding: wide ? [24, 56, 24, 332] : [12, 12, 12, 12], constrainResolution: false});
  }

  showCoordinates(coordinate) {
    const [column, row] = this.grid.toPixel(coordinate);
    const inside = column >= 0 && row >= 0 && column < this.grid.columns && row < this.grid.rows;
    find("coordinates").textContent = inside ? `${this.grid.format(column, row)}${this.grid.crs ? ` · ${this.grid.crs}` : ""}` : "";
  }

  /** Bring the map in line with the state. */
  update() {
    const {layer, compare, band, opacity} = this.state;
    for (const made of [...this.layers.values()].flat()) {
      made.setVisible(false);
    }
    const left = this.shown(layer, band);
    const right = this.isComparing ? this.shown(compare, 0) : [];
    for (const [side, made] of [["left", left], ["right", right]]) {
      for (const one of made) {
        one.set("side", side);
        one.setVisible(true);
        one.setOpacity(opacity / 100);
      }
    }
    for (const [id, overlay] of this.overlays) {
      overlay.setVisible(this.state.overlays.has(id));
    }
    this.updatePanel();
    this.updateLegend();
    this.writeHash();
  }

  // --- deep links ---

  writeHash() {
    const view = this.map.getView();
    const center = this.grid.toCrs(...this.grid.toPixel(view.getCenter()));
    const digits = Math.max(0, Math.ceil(-Math.log10(Math.hypot(this.grid.a, this.grid.d))) + 2);
    const {layer, band, compare, opacity, swipe, overlays} = this.state;
    const values = {
      center: center.map((value) => value.toFixed(digits)).join(","), pixel: (1 / view.getResolution()).toPrecision(4), layer,
      ...(band && {band}), ...(opacity < 100 && {opacity}), ...(compare && {compare, swipe}),
      ...(overlays.size && {overlays: [...overlays].join(",")}),
    };
    history.replaceState(null, "", `#${new URLSearchParams(values)}`.replaceAll("%2C", ","));
  }

  /** Take over the state of the address; parts that this map does not have are ignored. */
  readHash() {
    const values = new URLSearchParams(location.hash.slice(1));
    const number = (name, low, high) => {
      const value = Number(values.get(name));
      return values.has(name) && value >= low && value <= high ? value : null;
    };
    const known = (name) => this.choices().some((choice) => choice.id === values.get(name));
    const view = this.map.getView();
    const center = (values.get("center") || "").split(",").map(Number);
    const zoom = number("pixel", 1e-6, 1e6);
    if (center.length === 2 && center.every(Number.isFinite) && zoom !== null) {
      view.setCenter(this.grid.toView(...this.grid.fromCrs(center)));
      view.setResolution(1 / zoom);
    }
    this.state.layer = known("layer") ? values.get("layer") : this.state.layer;
    const bands = this.products.get(this.state.layer)?.bands.length || 1;
    this.state.band = Math.trunc(number("band", 0, bands - 1) ?? 0);
    this.state.compare = known("compare") ? values.get("compare") : "";
    this.state.opacity = number("opacity", 0, 100) ?? 100;
    this.state.swipe = number("swipe", 0, 100) ?? 50;
    const overlays = (values.get("overlays") || "").split(",");
    this.state.overlays = new Set(overlays.filter((id) => this.overlays.has(id)));
    return true;
  }
}
