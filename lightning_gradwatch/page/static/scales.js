// Numbers, scales and colours. Pure: no document.

/** Spell a number with three significant digits and a short exponent; what wasn't measured is a dash. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(digits)));
  return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
}

/** Spell a share as a percentage that never rounds up to 100. */
export function percent(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value > 0.99 && value < 1) return `${Math.min(100 * value, 99.9).toFixed(1)} %`;
  if (value > 0 && value < 0.01) return `${number(100 * value, 1)} %`;
  return `${(100 * value).toFixed(0)} %`;
}

/** Spell a metric's value. */
export function spelled(metric, value) {
  return metric.log ? number(value) : percent(value);
}

/** Read a number of the model, which spells three that JSON hasn't. */
export function plainNumber(value) {
  if (typeof value === "number") return value;
  return { NaN, Infinity, "-Infinity": -Infinity }[value] ?? NaN;
}

/**
 * Find a scale that suits values: whole decades without the hundredth at either end, or 0 to 1.
 *
 * @param {Iterable<ArrayLike<number>>} lists
 * @param {boolean} log
 */
export function scaleOver(lists, log) {
  const sample = [];
  for (const list of lists) {
    const every = Math.max(1, Math.floor(list.length / 20000));
    for (let place = 0; place < list.length; place += every) {
      const value = list[place];
      if (Number.isFinite(value) && (value > 0 || !log)) sample.push(log ? Math.log10(value) : value);
    }
  }
  sample.sort((a, b) => a - b);
  if (!log) {
    const high = sample.length ? sample[sample.length - 1] : 1;
    const low = sample.length ? Math.min(0, sample[0]) : 0;
    return { log, low, high: high > 1 ? high : 1 };
  }
  if (!sample.length) return { log, low: -1, high: 0 };
  const few = Math.floor(sample.length / 100);
  const high = Math.ceil(sample[sample.length - 1 - few]);
  return { log, low: Math.min(Math.floor(sample[few]), high - 1), high };
}

/** Widen a log scale so that it holds at least so many decades. */
export function atLeast(scale, decades) {
  return scale.log ? { ...scale, low: Math.min(scale.low, scale.high - decades) } : scale;
}

/** Where a value lies on a scale, 0 to 1; NaN for what has no place on it. */
export function position(scale, value) {
  if (Number.isNaN(value)) return NaN;
  if (scale.log && !(value > 0)) return value === 0 ? 0 : NaN;
  const level = scale.log ? Math.log10(value) : value;
  if (level === Infinity) return 1;
  return Math.min(Math.max((level - scale.low) / (scale.high - scale.low), 0), 1);
}

/** Values at which a scale is labelled, at most so many. */
export function ticks(scale, most) {
  if (!scale.log) return [0, 0.25, 0.5, 0.75, 1].map((share) => scale.low + share * (scale.high - scale.low));
  const decades = scale.high - scale.low;
  const apart = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((step) => decades / step + 1 <= most) ?? 1000;
  const found = [];
  for (let exponent = scale.high; exponent >= scale.low; exponent -= apart) found.push(10 ** exponent);
  return found;
}

/** Places of a row of labels that don't touch: each so many apart, the first and the last among them. */
export function labelled(count, most) {
  if (count <= 0) return [];
  const apart = Math.max(1, Math.ceil((count - 1) / Math.max(most - 1, 1)));
  const found = [];
  for (let place = 0; place < count; place += apart) found.push(place);
  if (found[found.length - 1] !== count - 1) {
    if (count - 1 - found[found.length - 1] < 0.75 * apart) found.pop();
    found.push(count - 1);
  }
  return found;
}

// After cividis: dark blue to yellow, readable with any colour vision and in grey.
const ANCHORS = [
  [0, 34, 78], [30, 58, 111], [66, 78, 108], [97, 99, 112],
  [125, 124, 120], [161, 150, 116], [201, 178, 98], [254, 232, 56],
];

/** The colour of a place on the scale, 0 to 1. */
export function colour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (ANCHORS.length - 1);
  const below = Math.min(Math.floor(place), ANCHORS.length - 2);
  const rest = place - below;
  return ANCHORS[below].map((from, channel) => Math.round(from + rest * (ANCHORS[below + 1][channel] - from)));
}

/** Codes of a heatmap's cells that have no colour of the scale; 0 to 255 are its places. */
export const ZERO = 256;
export const NON_FINITE = 257;
export const ABSENT = 258;

/** The code of a value. */
export function cellCode(scale, value) {
  if (Number.isNaN(value)) return ABSENT;
  if (!Number.isFinite(value)) return NON_FINITE;
  if (value === 0 && scale.log) return ZERO;
  const place = position(scale, value);
  return Number.isNaN(place) ? ABSENT : Math.round(255 * place);
}

/** Of several codes that share a pixel: what alarms, else what was measured, else nothing. */
export function worseCode(one, two) {
  if (one === ABSENT) return two;
  if (two === ABSENT) return one;
  if (one >= ZERO || two >= ZERO) return Math.max(one >= ZERO ? one : -1, two >= ZERO ? two : -1);
  return two;
}

/** Whether a value lies where a rule's line says that it is about it. */
export function beyond(line, value, last) {
  if (!Number.isFinite(value)) return false;
  const limit = line.of_last ? line.value * last : line.value;
  if (!Number.isFinite(limit)) return false;
  return line.side === "below" ? value < limit : value > limit;
}
