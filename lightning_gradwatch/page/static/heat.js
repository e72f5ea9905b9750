// Painting a heatmap pixel by pixel: what is exactly 0 is hatched and what isn't finite is dotted, so that neither is a shade.
import { ABSENT, NON_FINITE, ZERO, beyond, cellCode, colour, worseCode } from "./scales.js";

export const PATTERNS = {
  zero: { base: [213, 94, 0], mark: [255, 214, 165] },
  nonFinite: { base: [150, 20, 150], mark: [255, 255, 255] },
};

function packedColour([red, green, blue]) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

const LUT = Uint32Array.from({ length: 256 }, (_, place) => packedColour(colour(place / 255)));

/** The codes of all cells of a metric, row after row, and which of them lie beyond a rule's line. */
export function cellsOf(run, metric, scale) {
  run.cells_ ??= new Map();
  if (!run.cells_.has(metric.name)) {
    const codes = new Int16Array(run.rows.length * run.columns).fill(ABSENT);
    const outside = new Uint8Array(codes.length);
    const lines = run.lines.filter((line) => line.metric === metric.name).slice(0, 8);
    const last = lines.some((line) => line.of_last) ? run.lastSignal() : null;
    for (let row = 0; row < run.rows.length; row += 1) {
      const curve = run.curve(metric, row);
      for (let column = 0; curve && column < run.columns; column += 1) {
        const place = row * run.columns + column;
        codes[place] = cellCode(scale, curve[column]);
        lines.forEach((line, bit) => {
          if (beyond(line, curve[column], last?.[column])) outside[place] |= 1 << bit;
        });
      }
    }
    run.cells_.set(metric.name, { codes, outside, lines });
  }
  return run.cells_.get(metric.name);
}

/** The first and last column that a pixel of a row shows. */
export function columnsAt(pixel, width, columns) {
  const from = Math.floor((pixel * columns) / width);
  const to = Math.max(from, Math.ceil(((pixel + 1) * columns) / width) - 1);
  return [from, Math.min(to, columns - 1)];
}

function fillPixels(pixels, codes, from, to, columns, width, spans) {
  for (let pixel = 0; pixel < width; pixel += 1) {
    let code = ABSENT;
    for (let row = from; row < to; row += 1) {
      const start = row * columns;
      for (let column = spans[2 * pixel]; column <= spans[2 * pixel + 1]; column += 1) {
        code = worseCode(code, codes[start + column]);
      }
    }
    pixels[pixel] = code;
  }
}

/**
 * Paint lines of rows.
 *
 * @param {CanvasRenderingContext2D} pen
 * @param {{x, y, width, height, ratio}} area In CSS pixels.
 * @param {{from, to, top, height}[]} lines Whose tops are relative to the area.
 */
export function paintCells(pen, area, lines, cells, columns, absent) {
  const [width, height] = [Math.round(area.width * area.ratio), Math.round(area.height * area.ratio)];
  if (width < 1 || height < 1 || !columns) return;
  const image = pen.createImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const nothing = packedColour(absent);
  out.fill(nothing);
  const marks = { [ZERO]: PATTERNS.zero, [NON_FINITE]: PATTERNS.nonFinite };
  const [zeroBase, zeroMark] = [packedColour(marks[ZERO].base), packedColour(marks[ZERO].mark)];
  const [oddBase, oddMark] = [packedColour(marks[NON_FINITE].base), packedColour(marks[NON_FINITE].mark)];
  const unit = Math.max(1, Math.round(area.ratio));
  const spans = new Int32Array(2 * width);
  for (let pixel = 0; pixel < width; pixel += 1) spans.set(columnsAt(pixel, width, columns), 2 * pixel);
  const pixels = new Int16Array(width);
  let [own, above] = [new Uint8Array(width), new Uint8Array(width)];
  let begun = false;
  const [bright, dark] = [packedColour([255, 255, 255]), packedColour([20, 20, 20])];
  for (const line of lines) {
    const count = line.to - line.from;
    const top = Math.round(line.top * area.ratio);
    const bottom = Math.round((line.top + line.height) * area.ratio);
    let painted = -1;
    let fresh = 0;
    for (let y = Math.max(top, 0); y < Math.min(bottom, height); y += 1) {
      const first = line.from + Math.floor(((y - top) * count) / (bottom - top));
      if (first !== painted) {
        const next = line.from + Math.ceil(((y - top + 1) * count) / (bottom - top));
        fillPixels(pixels, cells.codes, first, Math.max(first + 1, Math.min(next, line.to)), columns, width, spans);
        painted = first;
        [own, above] = [above, own];
        for (let pixel = 0; pixel < width; pixel += 1) own[pixel] = cells.outside[first * columns + spans[2 * pixel + 1]];
        fresh = begun ? 2 : 0;
        begun = true;
      }
      const start = y * width;
      const along = Math.floor(y / unit);
      for (let pixel = 0; pixel < width; pixel += 1) {
        const code = pixels[pixel];
        if (code < ZERO) out[start + pixel] = LUT[code];
        else if (code === ZERO) out[start + pixel] = (Math.floor(pixel / unit) + along) % 6 < 2 ? zeroMark : zeroBase;
        else if (code === NON_FINITE) out[start + pixel] = Math.floor(pixel / unit) % 5 < 2 && along % 5 < 2 ? oddMark : oddBase;
      }
      if (!cells.lines.length) continue;
      // The contour: a bright line with a dark one beside it, on any shade. Drawn as strokes, a noisy metric takes long.
      for (let pixel = 1; pixel < width; pixel += 1) {
        if (own[pixel] !== own[pixel - 1]) [out[start + pixel - 1], out[start + pixel]] = [dark, bright];
        else if (fresh && own[pixel] !== above[pixel]) out[start + pixel] = fresh === 2 ? dark : bright;
      }
      if (fresh) fresh -= 1;
    }
  }
  pen.putImageData(image, Math.round(area.x * area.ratio), Math.round(area.y * area.ratio));
}
