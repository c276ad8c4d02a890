"use strict";

/*
 * Reading a map's cloud-optimised GeoTIFFs by ranges, in the pixels of its grid.
 *
 * The view's coordinates are pixels of the grid, not of its CRS: x is the column, y the negative row. So every grid is shown
 * exactly, pixel by pixel: in any CRS or none, rotated too, without projecting anything. View.rotation turns north up.
 */

/** Bytes of a file that is read completely where a server ignores ranges, at most. */
const LARGEST_WHOLE_FILE = 64 * 2 ** 20;
/** Bytes that a request asks for at least, and number of such blocks that are kept of a file. */
const BLOCK = 2 ** 16;
const BLOCKS = 256;
/** Side of the GeoTIFFs' internal tiles, and of the coarsest overview at most. */
const TILE = 512;

/** A problem that the reader of the page can do something about. */
class MapError extends Error {
  /**
   * @param {string} message What happened, and what to do.
   * @param {boolean} replaced Whether the map may have been replaced, which the item says.
   */
  constructor(message, replaced = false) {
    super(message);
    this.replaced = replaced;
  }
}

/** The grid of a map: from its pixels to coordinates of its CRS, and to those of the view. */
class Grid {
  /** @param {Object} properties Those of the STAC item. */
  constructor(properties) {
    [this.rows, this.columns] = properties["proj:shape"];
    [this.a, this.b, this.c, this.d, this.e, this.f] = properties["proj:transform"];
    const wkt = properties["proj:wkt2"] || "";
    this.crs = properties["proj:code"] || (/^\w+\["([^"]*)"/.exec(wkt) || ["", ""])[1];
    this.geographic = /^(GEOGCRS|GEODCRS)/.test(wkt);
    this.located = wkt !== "";
    // Rows usually run south. Where they run north, the rows of all files are reversed: a rotation cannot mirror them.
    this.mirrored = this.a * this.e - this.b * this.d > 0;
    this.extent = [0, -this.rows, this.columns, 0];
  }

  /** Coordinates of the view of a position in pixels. */
  toView(column, row) {
    return [column, this.mirrored ? row - this.rows : -row];
  }

  /** Position in pixels, [column, row], of coordinates of the view. */
  toPixel([x, y]) {
    return [x, this.mirrored ? y + this.rows : -y];
  }

  /** Coordinates in the CRS of a position in pixels. */
  toCrs(column, row) {
    return [this.a * column + this.b * row + this.c, this.d * column + this.e * row + this.f];
  }

  /** Position in pixels of coordinates in the CRS. */
  fromCrs([x, y]) {
    const area = this.a * this.e - this.b * this.d;
    const [u, v] = [x - this.c, y - this.f];
    return [(this.e * u - this.b * v) / area, (this.a * v - this.d * u) / area];
  }

  /** Rotation of the view, clockwise in radians, that turns the CRS's north up. */
  get rotation() {
    const [column, row] = this.fromCrs([this.c, this.f + 1]);
    return -Math.atan2(column, this.mirrored ? row : -row) || 0;
  }

  /** Metres across a pixel, along the grid's rows; null if unknown. */
  metres(resolution) {
    if (resolution) {
      return resolution;
    }
    if (!this.geographic) {
      return null;
    }
    const [, latitude] = this.toCrs(this.columns / 2, this.rows / 2);
    return Math.hypot(this.a * Math.cos((latitude * Math.PI) / 180), this.d) * 111320;
  }

  /** Text of a position in pixels: in the CRS, or in pixels if the grid has none. */
  format(column, row) {
    if (!this.located) {
      return `column ${Math.floor(column)}, row ${Math.floor(row)}`;
    }
    const digits = Math.max(0, Math.ceil(-Math.log10(Math.hypot(this.a, this.d))) + 1);
    return this.toCrs(column, row).map((value) => value.toFixed(digits)).join(", ");
  }
}

/** One file on a server, read by ranges; the interface is that of geotiff.js. */
class RangeClient {
  /**
   * @param {string} url The file, with its checksum as a query: a browser's cache must not mix two maps' files.
   * @param {number} size Bytes according to the item.
   */
  constructor(url, size) {
    this.url = url;
    this.size = size;
    this.name = decodeURIComponent(new URL(url).pathname.split("/").pop());
    this.etag = null;
    this.whole = null;
    this.problem = null; // geotiff.js does not pass errors on
  }

  async request({headers = {}, signal} = {}) {
    try {
      const answer = await this.read(headers, signal);
      this.problem = null;
      return answer;
    } catch (error) {
      this.problem = error;
      throw error;
    }
  }

  async read(headers, signal) {
    const [, first, last] = /bytes=(\d+)-(\d+)/.exec(headers.Range).map(Number);
    if (this.whole === null) {
      const response = await this.fetch(headers.Range, signal);
      if (response.status === 206) {
        this.check(response);
        const content = await response.arrayBuffer();
        return this.answer(first, content);
      }
      if (this.size > LARGEST_WHOLE_FILE) {
        throw new MapError(
          `${this.name}: the server does not support range requests, and the file is too large to be read completely. ` +
          "Use a server that does, or run `mibf view` with the folder of this map."
        );
      }
      this.whole = this.whole || response.arrayBuffer();
    }
    const content = await this.whole;
    if (content.byteLength !== this.size) {
      throw new MapError(`${this.name}: is not the file that the item describes.`, true);
    }
    return this.answer(first, content.slice(first, last + 1));
  }

  async fetch(range, signal) {
    let response;
    try {
      response = await fetch(this.url, {headers: {Range: range}, signal});
    } catch (error) {
      if (error.name === "AbortError") {
        throw error;
      }
      const origin = new URL(this.url).origin;
      throw new MapError(
        origin === location.origin
          ? `${this.name}: the server does not respond. Check that it is running, then reload.`
          : `${this.name}: ${origin} cannot be reached, or does not allow other sites to read its files (CORS). Allow this ` +
            "page's origin there, with the header Range, or open the map from its own server."
      );
    }
    if (response.status === 404 || response.status === 410) {
      throw new MapError(`${this.name}: the file is missing.`, true);
    }
    if (!response.ok) {
      throw new MapError(`${this.name}: the server answered ${response.status}; check who may read the file.`);
    }
    return response;
  }

  /** Check that a response is about the file that the item describes, as far as the server says. */
  check(response) {
    const total = /\/(\d+)$/.exec(response.headers.get("Content-Range") || "");
    const etag = response.headers.get("ETag");
    if ((total && Number(total[1]) !== this.size) || (etag && this.etag && etag !== this.etag)) {
      throw new MapError(`${this.name}: is not the file that the item describes.`, true);
    }
    this.etag = etag || this.etag;
  }

  answer(first, content) {
    // Other servers may hide Content-Range from pages, so it is stated here.
    const range = `bytes ${first}-${first + content.byteLength - 1}/${this.size}`;
    const found = new Map([["content-range", range]]);
    return {ok: true, status: 206, getHeader: (name) => found.get(name.toLowerCase()), getData: async () => content};
  }
}

/** One GeoTIFF of a product. */
class RasterFile {
  /**
   * @param {Object} asset The item's asset.
   * @param {string} url Where it is.
   * @param {Grid} grid The grid of the map.
   */
  constructor(asset, url, grid) {
    [this.rows, this.columns] = asset["proj:shape"] || [grid.rows, grid.columns];
    const [, , x, , , y] = asset["proj:transform"] || [];
    // The first pixel of a block on the grid of the map.
    [this.x, this.y] = x === undefined ? [0, 0] : grid.fromCrs([x, y]).map(Math.round);
    this.client = new RangeClient(url, asset["file:size"]);
    this.levels = 1;
    while (Math.max(this.rows, this.columns) > TILE * 2 ** (this.levels - 1)) {
      this.levels += 1;
    }
    this.images = new Map();
  }

  /** Rows and columns of a level; each halves the one before. */
  shape(level) {
    return [Math.ceil(this.rows / 2 ** level), Math.ceil(this.columns / 2 ** level)];
  }

  /** The image of a level; opened once. */
  image(level) {
    if (!this.images.has(level)) {
      this.tiff = this.tiff || GeoTIFF.fromCustomClient(this.client, {blockSize: BLOCK, cacheSize: BLOCKS});
      this.images.set(level, this.tiff.then((tiff) => tiff.getImage(level)));
    }
    return this.images.get(level);
  }

  /**
   * Read a window of a level; what is outside the file has the fill value.
   * @return {Promise<Array>} An array for each of the bands, counted from 0.
   */
  async read(level, [x, y, width, height], bands, fill, signal) {
    const window = [x, y, x + width, y + height];
    try {
      const image = await this.image(level);
      return await image.readRasters({window, samples: bands, fillValue: fill, interleave: false, signal});
    } catch (error) {
      throw signal?.aborted ? new DOMException("no longer needed", "AbortError") : this.client.problem || error;
    }
  }
}

/** A product of the map: its files, and what their numbers mean. */
class Product {
  constructor(name, assets, base, grid) {
    const [first] = assets;
    this.name = name;
    this.grid = grid;
    this.files = assets.map((asset) => {
      const url = new URL(asset.href, base);
      url.searchParams.set("v", asset["file:checksum"].slice(4, 20));
      return new RasterFile(asset, url.href, grid);
    });
    this.bands = first.bands.map((band) => band.name);
    this.classes = (first["classification:classes"] || []).filter((entry) => !entry.nodata);
    this.bits = (first["classification:bitfields"] || []).map((bit) => /source (.*) has data$/.exec(bit.description)?.[1] || bit.name);
    this.scale = first["raster:scale"] || 1;
    this.unit = first.unit || "";
    this.metres = first["raster:spatial_resolution"];
    this.nodata = first.nodata === undefined || first.nodata === "nan" ? NaN : Number(first.nodata);
    this.range = null;
  }

  get isCategorical() {
    return this.classes.length > 0;
  }

  isNodata(code) {
    return Number.isNaN(this.nodata) ? Number.isNaN(code) : code === this.nodata;
  }

  /** Lowest and highest value of the colours: known, or the 2nd and 98th percentile of the coarsest overview. */
  async findRange() {
    if (this.range === null) {
      const fractions = ["confidence", "probabilities", "gate"].includes(this.name);
      this.range = fractions ? Promise.resolve([0, 1]) : this.percentiles();
    }
    return this.range;
  }

  async percentiles() {
    const values = [];
    for (const file of this.files.slice(0, 4)) {
      const level = file.levels - 1;
      const [rows, columns] = file.shape(level);
      const [codes] = await file.read(level, [0, 0, columns, rows], [0], this.nodata);
      for (const code of codes) {
        if (!this.isNodata(code)) {
          values.push(code * this.scale);
        }
      }
    }
    values.sort((one, other) => one - other);
    const at = (share) => values[Math.round(share * (values.length - 1))];
    const [low, high] = values.length ? [at(0.02), at(0.98)] : [0, 1];
    return [low, high > low ? high : low + 1];
  }

  /**
   * One byte for each pixel of a tile of a file: an index of the palette, 255 without a value. Class ids are their own.
   */
  async bytes(file, level, tileX, tileY, band, signal) {
    const [rows] = file.shape(level);
    const y = this.grid.mirrored ? rows - (tileY + 1) * TILE : tileY * TILE;
    const [codes] = await file.read(level, [tileX * TILE, y, TILE, TILE], [band], this.nodata, signal);
    const [low, high] = this.isCategorical || this.bits.length ? [0, 254] : await this.findRange();
    const found = new Uint8Array(TILE * TILE);
    for (let row = 0; row < TILE; row += 1) {
      const target = (this.grid.mirrored ? TILE - 1 - row : row) * TILE;
      for (let column = 0; column < TILE; column += 1) {
        const code = codes[row * TILE + column];
        found[target + column] = this.isNodata(code) ? 255 : this.index(code, low, high);
      }
    }
    return found;
  }

  index(code, low, high) {
    if (this.isCategorical) {
      return code;
    }
    if (this.bits.length) { // the number of sources with data
      return this.bits.filter((_, bit) => Math.floor(code / 2 ** bit) % 2).length;
    }
    return Math.round(254 * Math.min(1, Math.max(0, (code * this.scale - low) / (high - low))));
  }

  /** The values of a pixel of the grid, one for each band; null where there is none, and outside the map. */
  async pixel(column, row) {
    for (const file of this.files) {
      const [x, y] = [column - file.x, row - file.y];
      if (x >= 0 && y >= 0 && x < file.columns && y < file.rows) {
        const bands = this.bands.map((_, index) => index);
        const codes = await file.read(0, [x, y, 1, 1], bands, this.nodata);
        return codes.map(([code]) => (this.isNodata(code) ? null : code * this.scale));
      }
    }
    return this.bands.map(() => null);
  }
}
