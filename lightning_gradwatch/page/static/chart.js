// A chart of curves over steps, or over depth: hover reads it, dragging zooms, a double click goes back.
import { h, prepared, write } from "./dom.js";
import { labelled, number, percent, position, scaleOver, ticks } from "./scales.js";

const LEFT = 58;
const RIGHT = 12;
const TOP = 24;
const BOTTOM = 24;
const SMALL = '11px system-ui, -apple-system, "Segoe UI", sans-serif';

/**
 * One chart.
 *
 * curves: [{label, values, colour, dash}]; all have a value for each label of x.
 * lines: [{value, label}] drawn across. bars: [{label, values, colour}] below the curves, as shares of what is passed back.
 */
export class Chart {
  constructor({ title, description, height, log, labels, curves, lines = [], bars = [], mark = null, colours, onPick = null, zoom = null, xTitle = "step" }) {
    Object.assign(this, { title, description, height, log, labels, curves, lines, bars, mark, colours, onPick, xTitle });
    this.zoom = zoom ?? { from: 0, to: labels.length - 1, watchers: new Set() };
    this.zoom.watchers ??= new Set();
    this.again = () => this.later();
    this.zoom.watchers.add(this.again);
    this.canvas = h("canvas", { class: "gw-canvas", role: "img", "aria-label": `${title}. ${description ?? ""}` });
    this.tip = h("div", { class: "gw-tip", hidden: true, role: "presentation" });
    this.element = h(
      "figure",
      {
        class: "gw-chart", onmousemove: (event) => this.onMove(event), onmouseleave: () => this.leave(),
        onmousedown: (event) => this.onDown(event), onmouseup: (event) => this.onUp(event), ondblclick: () => this.reset(),
      },
      this.canvas, this.tip,
    );
    this.observer = new ResizeObserver(() => this.later());
    this.observer.observe(this.element);
  }

  destroy() {
    this.observer.disconnect();
    this.zoom.watchers.delete(this.again);
    cancelAnimationFrame(this.frame);
  }

  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  scale() {
    const seen = this.curves.map((curve) => curve.values.slice(this.zoom.from, this.zoom.to + 1));
    if (this.fixed) return this.fixed;
    const found = scaleOver(seen, this.log);
    if (!this.log) return found;
    // A line that is always shown lies inside, not on the edge.
    for (const line of this.lines.filter((each) => each.always)) {
      const level = Math.log10(line.value);
      found.low = Math.min(found.low, Math.ceil(level) - 1);
      found.high = Math.max(found.high, Math.floor(level) + 1);
    }
    return found;
  }

  draw() {
    const width = Math.floor(this.element.clientWidth);
    if (width < 80) return;
    this.paint(this.canvas, width);
  }

  paint(canvas, width) {
    const { pen } = prepared(canvas, width, this.height);
    const colours = this.colours();
    pen.fillStyle = colours.card;
    pen.fillRect(0, 0, width, this.height);
    const barsHigh = this.bars.length ? 76 : 0;
    const box = { x: LEFT, y: TOP, width: width - LEFT - RIGHT, height: this.height - TOP - BOTTOM - barsHigh };
    this.box = box;
    const scale = this.scale();
    pen.font = `600 12px system-ui, -apple-system, "Segoe UI", sans-serif`;
    pen.fillStyle = colours.fg;
    pen.textBaseline = "alphabetic";
    write(pen, this.title, 8, 15, this.bars.length ? width * 0.3 : width * 0.6);
    this.legend(pen, width, colours);
    pen.font = SMALL;
    pen.textBaseline = "middle";
    const y = (value) => box.y + box.height * (1 - position(scale, value));
    for (const tick of ticks(scale, Math.max(2, Math.floor(box.height / 26)))) {
      pen.fillStyle = colours.line;
      pen.fillRect(box.x, Math.round(y(tick)), box.width, 1);
      pen.fillStyle = colours.muted;
      write(pen, this.log ? number(tick, 1) : percentOr(tick, scale), box.x - 6, y(tick), LEFT - 8, "right");
    }
    const { from, to } = this.zoom;
    const inset = this.inset(box);
    const x = (place) => box.x + inset + (to > from ? ((place - from) / (to - from)) * (box.width - 2 * inset) : box.width / 2 - inset);
    pen.save();
    pen.beginPath();
    pen.rect(box.x - 4, box.y - 4, box.width + 8, box.height + 8);
    pen.clip();
    const labels = [];
    for (const line of this.lines) {
      const share = position(scale, line.value);
      if (!(line.value > 0) || (share <= 0 || share >= 1)) continue;
      pen.strokeStyle = line.colour ?? colours.fg;
      pen.setLineDash([6, 4]);
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(box.x, y(line.value));
      pen.lineTo(box.x + box.width, y(line.value));
      pen.stroke();
      // Below its line near the top, where curves run; none where it would lie on another one.
      const at = y(line.value) + (share > 0.85 ? 9 : -7);
      if (labels.some((other) => Math.abs(other - at) < 12)) continue;
      labels.push(at);
      pen.setLineDash([]);
      pen.fillStyle = colours.muted;
      write(pen, line.label, box.x + box.width - 4, at, box.width - 8, "right");
    }
    for (const curve of this.curves) this.curve(pen, curve, x, y, colours, box);
    if (this.mark !== null && this.mark >= from && this.mark <= to) {
      pen.strokeStyle = colours.accent;
      pen.setLineDash([4, 3]);
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.moveTo(x(this.mark), box.y);
      pen.lineTo(x(this.mark), box.y + box.height);
      pen.stroke();
    }
    pen.restore();
    pen.setLineDash([]);
    if (this.bars.length) this.drawBars(pen, box, x, colours, barsHigh);
    pen.font = SMALL;
    pen.fillStyle = colours.muted;
    const bottom = this.height - 9;
    const count = to - from + 1;
    const widest = Math.max(...this.labels.slice(from, to + 1).map((label) => pen.measureText(shortLabel(label)).width), 10);
    for (const place of labelled(count, Math.max(2, Math.floor(box.width / (Math.min(widest, 110) + 24))))) {
      const text = shortLabel(this.labels[from + place]);
      const half = Math.min(pen.measureText(text).width, 110) / 2;
      write(pen, text, Math.min(Math.max(x(from + place), box.x + half), box.x + box.width - half), bottom, 110, "center");
    }
    if (this.hover !== undefined && this.hover !== null) {
      pen.fillStyle = colours.accent;
      pen.fillRect(x(this.hover), box.y, 1, box.height);
    }
    if (this.drag) {
      pen.fillStyle = colours.chosen;
      pen.fillRect(Math.min(x(this.drag.from), x(this.drag.to)), box.y, Math.abs(x(this.drag.to) - x(this.drag.from)), box.height);
    }
  }

  /** Room at both ends for bars that stand around their place. */
  inset(box) {
    return this.bars.length ? Math.min(16, box.width / 8) : 0;
  }

  curve(pen, curve, x, y, colours, box) {
    const { from, to } = this.zoom;
    pen.strokeStyle = curve.colour;
    pen.lineWidth = curve.wide ?? 2;
    pen.setLineDash(curve.dash ?? []);
    pen.beginPath();
    let on = false;
    const odd = [];
    for (let place = from; place <= to; place += 1) {
      const value = curve.values[place];
      if (Number.isNaN(value) || !Number.isFinite(value) || (this.log && !(value > 0))) {
        if (!Number.isNaN(value)) odd.push([x(place), value]);
        on = false;
        continue;
      }
      if (on) pen.lineTo(x(place), y(value));
      else pen.moveTo(x(place), y(value));
      on = true;
    }
    pen.stroke();
    pen.setLineDash([]);
    if (to - from <= 60) {
      pen.fillStyle = curve.colour;
      for (let place = from; place <= to; place += 1) {
        const value = curve.values[place];
        if (!Number.isFinite(value) || (this.log && !(value > 0)) || curve.dash) continue;
        pen.beginPath();
        pen.arc(x(place), y(value), 2.4, 0, 7);
        pen.fill();
      }
    }
    // What has no place on the scale lies on its edge: exactly 0 below, not finite above.
    for (const [place, value] of odd) {
      pen.fillStyle = Number.isFinite(value) ? colours.zero : colours.nonFinite;
      pen.fillRect(place - 2.5, value === Infinity ? box.y - 3 : box.y + box.height - 3, 5, 5);
    }
  }

  drawBars(pen, box, x, colours, high) {
    const top = box.y + box.height + 12;
    const tall = high - 18;
    const { from, to } = this.zoom;
    const values = this.bars.flatMap((bar) => Array.from(bar.values).slice(from, to + 1)).filter((value) => value > 0 && Number.isFinite(value));
    const most = Math.max(1, ...values.map((value) => Math.abs(Math.log10(value))));
    const base = top + tall / 2;
    const room = box.width / Math.max(to - from + 1, 1);
    const wide = Math.max(1, Math.min(12, (room - 1) / this.bars.length));
    pen.font = SMALL;
    pen.fillStyle = colours.muted;
    pen.textBaseline = "middle";
    write(pen, `×${number(10 ** most, 1)}`, box.x - 6, top + 4, LEFT - 8, "right");
    write(pen, "×1", box.x - 6, base, LEFT - 8, "right");
    write(pen, `×${number(10 ** -most, 1)}`, box.x - 6, top + tall - 4, LEFT - 8, "right");
    pen.fillStyle = colours.line;
    pen.fillRect(box.x, base, box.width, 1);
    this.bars.forEach((bar, each) => {
      pen.fillStyle = bar.colour;
      for (let place = from; place <= to; place += 1) {
        const value = bar.values[place];
        if (Number.isNaN(value)) continue;
        const share = value === 0 ? -1 : value === Infinity ? 1 : Math.log10(value) / most;
        const left = x(place) + (each - this.bars.length / 2) * wide;
        if (value === 0) pen.fillStyle = colours.zero;
        pen.fillRect(left, share > 0 ? base - (share * tall) / 2 : base, Math.max(wide - 0.5, 0.75), Math.max((Math.abs(share) * tall) / 2, 0.75));
        pen.fillStyle = bar.colour;
      }
    });
  }

  legend(pen, width, colours) {
    const things = [...this.curves, ...this.bars].filter((each) => each.label);
    if (things.length < 2 && !this.bars.length) return;
    pen.font = SMALL;
    let right = width - RIGHT;
    for (const each of [...things].reverse()) {
      const wide = Math.min(pen.measureText(each.label).width, 190);
      if (right - wide - 26 < (this.bars.length ? width * 0.3 : width * 0.4)) break;
      pen.fillStyle = colours.fg;
      write(pen, each.label, right, 15, 190, "right");
      pen.strokeStyle = each.colour;
      pen.fillStyle = each.colour;
      if (this.bars.includes(each)) pen.fillRect(right - wide - 16, 7, 9, 9);
      else {
        pen.setLineDash(each.dash ?? []);
        pen.lineWidth = 2;
        pen.beginPath();
        pen.moveTo(right - wide - 20, 11);
        pen.lineTo(right - wide - 5, 11);
        pen.stroke();
        pen.setLineDash([]);
      }
      right -= wide + 34;
    }
  }

  placeAt(event) {
    const box = this.canvas.getBoundingClientRect();
    if (!this.box) return 0;
    const inset = this.inset(this.box);
    const share = (event.clientX - box.left - this.box.x - inset) / (this.box.width - 2 * inset);
    const { from, to } = this.zoom;
    return Math.min(Math.max(Math.round(from + share * (to - from)), from), to);
  }

  onMove(event) {
    const place = this.placeAt(event);
    this.hover = place;
    if (this.drag) this.drag.to = place;
    this.tip.replaceChildren(
      h("strong", {}, h("bdi", { text: `${this.xTitle} ${this.labels[place] ?? ""}` })),
      ...[...this.curves, ...this.bars].map((curve) => h("div", { text: `${curve.label || this.title}: ${this.log ? number(curve.values[place]) : percent(curve.values[place])}` })),
    );
    this.tip.hidden = false;
    const box = this.element.getBoundingClientRect();
    this.tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - this.tip.offsetWidth - 2)}px`;
    this.tip.style.top = `${Math.min(event.clientY - box.top + 14, this.height)}px`;
    this.later();
  }

  leave() {
    this.tip.hidden = true;
    this.hover = null;
    this.drag = null;
    this.later();
  }

  onDown(event) {
    const place = this.placeAt(event);
    this.drag = { from: place, to: place };
    event.preventDefault();
  }

  onUp() {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    const [from, to] = [Math.min(drag.from, drag.to), Math.max(drag.from, drag.to)];
    if (to - from < 2) this.onPick?.(drag.to);
    else this.setZoom(from, to);
  }

  reset() {
    this.setZoom(0, this.labels.length - 1);
  }

  setZoom(from, to) {
    [this.zoom.from, this.zoom.to] = [from, to];
    for (const again of this.zoom.watchers) again();
  }
}

function shortLabel(label) {
  const text = String(label);
  return text.length > 22 ? `${text.slice(0, 10)}…${text.slice(-10)}` : text;
}

function percentOr(value, scale) {
  return scale.high <= 1 ? percent(value) : number(value);
}
