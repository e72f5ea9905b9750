// Reading the model: matrices are unpacked when they are first asked for. Pure: no document.
import { plainNumber, scaleOver } from "./scales.js";

export const MODEL_VERSION = 1;

const ABSENT = 0;
const CODES = [NaN, 0, Infinity, -Infinity, -0];

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place += 1) bytes[place] = binary.charCodeAt(place);
  return bytes;
}

/** Unpack a matrix to values, curve after curve. */
export function unpack(packed) {
  const bytes = bytesOf(packed.data);
  const view = new DataView(bytes.buffer);
  if (packed.encoding === "float64") {
    const values = new Float64Array(bytes.length / 8);
    for (let place = 0; place < values.length; place += 1) values[place] = view.getFloat64(8 * place, true);
    return values;
  }
  const values = new Float64Array(bytes.length / 2);
  const log = packed.encoding === "log16";
  const table = new Float64Array(65536);
  for (let code = 0; code < table.length; code += 1) {
    const level = packed.low + ((code - CODES.length) / packed.levels) * packed.span;
    table[code] = code < CODES.length ? CODES[code] : log ? 10 ** level : level;
  }
  table[ABSENT] = NaN;
  for (let place = 0; place < values.length; place += 1) values[place] = table[view.getUint16(2 * place, true)];
  return values;
}

/** A run of the model, with its numbers at hand. */
class RunData {
  constructor(run, place, model) {
    Object.assign(this, run);
    this.place = place;
    this.model = model;
    this.columns = run.steps.last.length;
    this.unpacked = new Map();
    this.layerPlace = new Map(run.layers.map((layer, each) => [layer.name, each]));
    this.sitePlace = new Map(run.sites.map((site, each) => [site.name, each]));
    this.rowOfLayer = new Map(run.rows.map(([layer], row) => [layer, row]));
    this.rowOfSite = new Map(run.rows.map(([, site], row) => [site, row]));
    this.lines = run.lines.map((line) => ({ ...line, value: plainNumber(line.value) }));
    this.scalars = run.scalars.map((scalar) => ({ ...scalar, values: scalar.values.map(plainNumber) }));
    this.states = null;
  }

  /** All values of a metric, curve after curve; empty where it wasn't measured. */
  matrix(metric) {
    if (!this.unpacked.has(metric)) {
      const packed = this.series[metric];
      this.unpacked.set(metric, packed ? unpack(packed) : new Float64Array(0));
    }
    return this.unpacked.get(metric);
  }

  has(metric) {
    return metric in this.series;
  }

  /** The curve of a row: a layer's or its site's, whichever the metric is of; null where it has none. */
  curve(metric, row) {
    const own = this.place_(metric, row);
    const values = this.matrix(metric.name);
    if (own < 0 || values.length === 0) return null;
    return values.subarray(own * this.columns, (own + 1) * this.columns);
  }

  value(metric, row, column) {
    const curve = this.curve(metric, row);
    return curve ? curve[column] : NaN;
  }

  place_(metric, row) {
    const pair = this.rows[row];
    return pair ? pair[metric.of === "layers" ? 0 : 1] : -1;
  }

  layer(row) {
    const place = this.rows[row]?.[0] ?? -1;
    return place < 0 ? null : this.layers[place];
  }

  site(row) {
    const place = this.rows[row]?.[1] ?? -1;
    return place < 0 ? null : this.sites[place];
  }

  /** What a row is called: by its layer, or by its activation where it has no layer. */
  nameOf(row) {
    return (this.layer(row) ?? this.site(row))?.name ?? "";
  }

  rowNamed(name) {
    const layer = this.layerPlace.get(name);
    if (layer !== undefined && this.rowOfLayer.has(layer)) return this.rowOfLayer.get(layer);
    const site = this.sitePlace.get(name);
    return site === undefined ? -1 : this.rowOfSite.get(site) ?? -1;
  }

  /** The word of a layer's state at a column, as the model's table has it; "" where it has none. */
  layerState(row, column) {
    const layer = this.rows[row]?.[0] ?? -1;
    if (layer < 0 || !this.layer_state) return "";
    this.states ??= bytesOf(this.layer_state);
    return this.model.states[String(this.states[layer * this.columns + column])] ?? "";
  }

  /** The column in which a step lies, or the last one before it. */
  columnOf(step) {
    const ends = this.steps.last;
    let column = ends.findIndex((end) => end >= step);
    if (column < 0) column = ends.length - 1;
    return Math.max(column, 0);
  }

  /** The steps of a column, in words. */
  stepsIn(column) {
    const [first, last] = [this.steps.first[column], this.steps.last[column]];
    return first === last ? `step ${last}` : `steps ${first} to ${last}`;
  }

  /** The signal at the last hidden activation, by column: what lines relative to it are drawn by. */
  lastSignal() {
    if (!this.lastSignal_) {
      const path = this.paths[0];
      const site = path ? path[path.length - 1] : this.sites.length - 1;
      const values = this.matrix("signal_norm");
      this.lastSignal_ =
        values.length && site >= 0 ? values.subarray(site * this.columns, (site + 1) * this.columns) : new Float64Array(this.columns).fill(NaN);
    }
    return this.lastSignal_;
  }
}

/** Read a model; of a newer version than this page knows there is a sentence instead. */
export function readModel(model) {
  if (!model || model.version !== MODEL_VERSION || !Array.isArray(model.runs)) {
    const version = model?.version ?? "none";
    throw new Error(`This page shows models of version ${MODEL_VERSION}, and this one has version ${version}.`);
  }
  const runs = model.runs.map((run, place) => new RunData(run, place, model));
  const scales = new Map();
  return {
    ...model,
    runs,
    metric: (name) => model.metrics.find((metric) => metric.name === name) ?? null,
    /** Metrics that some run has. */
    shown: model.metrics.filter((metric) => runs.some((run) => run.has(metric.name))),
    /** One scale a metric for all runs, so that they can be compared. */
    scale(metric) {
      if (!scales.has(metric.name)) {
        scales.set(metric.name, scaleOver(runs.map((run) => run.matrix(metric.name)), metric.log));
      }
      return scales.get(metric.name);
    },
  };
}
