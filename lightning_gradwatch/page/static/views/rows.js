// The rows of a run on one canvas: names, the heatmap, bars and a word for each row's state, aligned; only what is in sight is drawn.
import { h, prepared, write } from "../dom.js";
import { commonBeginning, groupRows, stacked } from "../groups.js";
import { cellsOf, paintCells } from "../heat.js";
import { atLeast, labelled, number, position, spelled } from "../scales.js";
import { stateOf, worstState } from "../states.js";

const HEAD = 40;
const FOOT = 30;
const LEAST = 20;
const WANTED = 420;
const MOST_GROUPS = 26;
const BESIDE = ["grad_norm", "signal_norm", "update_ratio", "dead_fraction", "saturated_fraction"];
const FONT = '12px system-ui, -apple-system, "Segoe UI", sans-serif';
const SMALL = '11px system-ui, -apple-system, "Segoe UI", sans-serif';

/** Where the columns of the canvas stand. */
export function layoutFor(width, metrics) {
  const name = Math.round(Math.min(Math.max(width * 0.155, 120), 300));
  const state = Math.round(Math.min(Math.max(width * 0.155, 124), 220));
  const wide = width > 1500 ? 120 : 84;
  const bars = metrics.map((metric) => ({ metric, width: metric.log ? wide : Math.round(0.8 * wide) }));
  const room = () => width - name - state - bars.reduce((sum, bar) => sum + bar.width + 9, 0) - 24;
  while (bars.length && room() < 0.3 * width) bars.pop();
  const heat = { x: name + 8, width: Math.max(40, room()) };
  let x = heat.x + heat.width + 14;
  for (const bar of bars) {
    bar.x = x;
    x += bar.width + 9;
  }
  return { name: { x: 0, width: name }, heat, bars, state: { x, width: width - x } };
}

/** The rows, on a canvas that follows its scroller. */
export class RowsView {
  constructor(ctx) {
    this.ctx = ctx;
    this.open = ctx.openGroups;
    this.canvas = h("canvas", { class: "gw-canvas", "aria-hidden": "true" });
    this.spacer = h("div", { class: "gw-spacer" });
    this.tip = h("div", { class: "gw-tip", hidden: true, role: "presentation" });
    this.scroller = h(
      "div",
      {
        class: "gw-rows", tabindex: "0", role: "group",
        "aria-label": "Layers by steps. Up and down choose a layer, left and right a step, Enter opens the layer, plus and minus fold.",
        onscroll: () => this.later(),
        onkeydown: (event) => this.onKey(event),
        onmousemove: (event) => this.onMove(event),
        onmouseleave: () => this.hide(),
        onclick: (event) => this.onClick(event),
        ondblclick: (event) => this.onOpen(event),
      },
      this.canvas, this.spacer,
    );
    this.element = h("div", { class: "gw-rows-holder" }, this.scroller, this.tip);
    this.observer = new ResizeObserver(() => Math.floor(this.scroller.clientWidth) !== this.drawnWidth && this.later());
    this.observer.observe(this.element);
    this.stack();
  }

  destroy() {
    this.observer.disconnect();
    cancelAnimationFrame(this.frame);
  }

  stack() {
    const { run } = this.ctx;
    this.names = run.rows.map((_, row) => run.nameOf(row));
    this.groups = groupRows(this.names, MOST_GROUPS);
    if (run.rows.length <= MOST_GROUPS && !this.open.touched) this.groups.forEach((group) => this.open.add(group.from));
    const perRow = Math.min(Math.max(WANTED / Math.max(run.rows.length, 1), 0.05), 28);
    this.lines = stacked(this.groups, this.open, perRow, LEAST);
    const last = this.lines[this.lines.length - 1];
    this.total = last ? last.top + last.height : 0;
    this.beginning = commonBeginning(this.names);
    this.later();
  }

  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  /** Draw what is in sight. */
  draw() {
    const { ctx } = this;
    cancelAnimationFrame(this.frame);
    const width = Math.floor(this.scroller.clientWidth);
    if (width < 50) return;
    this.drawnWidth = width;
    const most = Math.max(220, Math.min(this.total, Math.max(window.innerHeight * 0.62, WANTED)));
    this.seen = Math.min(this.total, most);
    this.scroller.style.maxHeight = `${HEAD + this.seen + FOOT}px`;
    this.spacer.style.height = `${this.total - this.seen}px`;
    this.paint(this.canvas, width, this.seen, this.scroller.scrollTop);
    ctx.drawn?.();
    performance.mark("gradwatch-drawn");
  }

  /** Paint some of the rows; for a picture, all of them. */
  paint(canvas, width, seen, scrolled) {
    const { ctx } = this;
    const { pen, ratio } = prepared(canvas, width, HEAD + seen + FOOT);
    const colours = ctx.colours();
    const layout = layoutFor(width, ctx.data.shown.filter((metric) => BESIDE.includes(metric.name)).sort((a, b) => BESIDE.indexOf(a.name) - BESIDE.indexOf(b.name)));
    if (canvas === this.canvas) this.layout = layout;
    const lines = this.lines
      .filter((line) => line.top + line.height > scrolled && line.top < scrolled + seen)
      .map((line) => ({ ...line, top: line.top - scrolled }));
    pen.fillStyle = colours.card;
    pen.fillRect(0, 0, width, HEAD + seen + FOOT);
    const area = { x: layout.heat.x, y: HEAD, width: layout.heat.width, height: seen, ratio };
    const cells = cellsOf(ctx.run, ctx.metric, ctx.data.scale(ctx.metric));
    const painted = lines.filter((line) => !(line.kind === "group" && line.open));
    paintCells(pen, area, painted, cells, ctx.run.columns, colours.absent);
    pen.save();
    pen.beginPath();
    pen.rect(0, HEAD, width, seen);
    pen.clip();
    this.outline(pen, area, lines, colours);
    this.body(pen, lines, layout, colours);
    pen.restore();
    this.frameOf(pen, area, layout, colours, width, seen);
  }

  /** Outline findings where they hold. */
  outline(pen, area, lines, colours) {
    const { run, place } = this.ctx;
    const wide = area.width / Math.max(run.columns, 1);
    for (const finding of [...run.findings].reverse()) {
      const chosen = place.finding === finding.id;
      const root = !finding.consequence_of && finding.severity !== "info";
      if (!root && !chosen) continue;
      const rows = new Set(finding.layers.map((name) => run.rowNamed(name)));
      const x = area.x + run.columnOf(finding.first_step) * wide;
      const right = area.x + (run.columnOf(finding.last_step) + 1) * wide;
      pen.strokeStyle = colours[finding.severity] ?? colours.fg;
      for (const [top, bottom] of spansOf(lines, rows)) {
        const box = [x + 1, area.y + top + 1, Math.max(right - x - 2, 2), Math.max(bottom - top - 2, 2)];
        pen.lineWidth = chosen ? 5 : 4;
        pen.strokeStyle = "rgba(255, 255, 255, 0.85)";
        pen.strokeRect(...box);
        pen.lineWidth = chosen ? 3 : 2;
        pen.strokeStyle = colours[finding.severity] ?? colours.fg;
        pen.strokeRect(...box);
      }
    }
  }

  body(pen, lines, layout, colours) {
    for (const line of lines) {
      const y = HEAD + line.top;
      const folded = line.kind === "group" && !line.open;
      if (line.kind === "group" && line.open) {
        pen.fillStyle = colours.stripe;
        pen.fillRect(0, y, layout.state.x + layout.state.width, line.height);
      } else if (line.height >= LEAST) {
        pen.fillStyle = colours.line;
        pen.fillRect(0, y + line.height - 1, layout.heat.x - 8, 1);
        pen.fillRect(layout.heat.x + layout.heat.width + 8, y + line.height - 1, layout.state.x, 1);
      }
      const chosen = this.isChosen(line);
      if (chosen) {
        pen.fillStyle = colours.chosen;
        pen.fillRect(0, y, layout.name.width + 4, line.height);
        pen.fillStyle = colours.accent;
        pen.fillRect(layout.heat.x - 5, y, 4, Math.max(line.height - 1, 2));
      }
      this.label(pen, line, y, layout, colours);
      if (line.kind === "row" || folded) {
        for (const bar of layout.bars) this.bars(pen, line, y, bar, colours);
        this.state(pen, line, y, layout.state, colours);
      }
    }
  }

  isChosen(line) {
    const row = this.ctx.row;
    return row >= line.from && row < line.to && !(line.kind === "group" && line.open);
  }

  label(pen, line, y, layout, colours) {
    pen.font = FONT;
    pen.textBaseline = "middle";
    pen.fillStyle = colours.fg;
    const middle = y + Math.min(line.height, 44) / 2;
    if (line.kind === "group") {
      write(pen, line.open ? "▾" : "▸", 4, y + 10, 12);
      write(pen, line.label, 18, y + 10, layout.name.width - 20);
      if (line.height >= 34) {
        pen.fillStyle = colours.muted;
        pen.font = SMALL;
        write(pen, `${line.to - line.from} rows`, 18, y + 25, layout.name.width - 20);
      }
      return;
    }
    const indent = line.inside ? 18 : 6;
    const room = layout.name.width - indent - 2;
    const [layer, site] = [this.ctx.run.layer(line.from), this.ctx.run.site(line.from)];
    const kind = layer && site ? site.function : layer ? layer.kind : site?.function;
    pen.font = SMALL;
    const aside = kind && room > 110 ? Math.min(pen.measureText(kind).width, room * 0.45) + 6 : 0;
    pen.font = FONT;
    write(pen, this.shownName(line), indent, middle, room - aside);
    if (aside) {
      pen.fillStyle = colours.muted;
      pen.font = SMALL;
      write(pen, kind, layout.name.width, middle, aside - 6, "right");
    }
  }

  /** A row's name; inside of a group what is left behind the group's. */
  shownName(line) {
    const name = this.names[line.from];
    if (!line.inside) return name;
    const group = this.groups.find((each) => line.from >= each.from && line.from < each.to);
    return name.startsWith(`${group.label}.`) ? name.slice(group.label.length + 1) : name;
  }

  bars(pen, line, y, bar, colours) {
    const { run, column, data } = this.ctx;
    const scale = bar.metric.log ? atLeast(data.scale(bar.metric), 4) : { log: false, low: 0, high: 1 };
    const count = line.to - line.from;
    const high = (line.height - 2) / count;
    const every = Math.max(1, Math.floor(1 / Math.max(high, 1e-3)));
    let [low, most] = [Infinity, -Infinity];
    for (let row = line.from; row < line.to; row += every) {
      const value = run.value(bar.metric, row, column);
      if (Number.isNaN(value)) continue;
      [low, most] = [Math.min(low, value), Math.max(most, value)];
      const share = position(scale, value);
      const level = stateOf(run, row, column).level;
      pen.fillStyle = level === "error" || level === "warning" ? colours.barIll : colours.bar;
      if (!Number.isFinite(value)) pen.fillStyle = colours.nonFinite;
      const top = y + 1 + (row - line.from) * high;
      pen.fillRect(bar.x, top, Math.max(share * bar.width, value === 0 ? 0 : 1.5), Math.max(high * every - (high > 3 ? 1 : 0), 1));
    }
    if (low > most) return;
    const told = count === 1 || low === most ? spelled(bar.metric, low) : `${told1(bar.metric, low)} … ${told1(bar.metric, most)}`;
    pen.font = SMALL;
    pen.textBaseline = "middle";
    const middle = y + line.height / 2;
    const wide = Math.min(pen.measureText(told).width, bar.width - 4);
    if (count > 1) {
      pen.fillStyle = colours.backing;
      pen.fillRect(bar.x + bar.width - wide - 6, middle - 8, wide + 6, 16);
    }
    pen.fillStyle = colours.fg;
    write(pen, told, bar.x + bar.width - 3, middle, bar.width - 4, "right");
  }

  state(pen, line, y, place, colours) {
    const { run, column } = this.ctx;
    const state = worstState(run, line.from, line.to, column);
    const middle = y + Math.min(line.height, 44) / 2;
    const tint = colours[state.level] ?? colours.muted;
    pen.fillStyle = tint;
    const [x, size] = [place.x + 6, 4.5];
    pen.beginPath();
    if (state.level === "error") pen.rect(x - size, middle - size, 2 * size, 2 * size);
    else if (state.level === "warning") {
      pen.moveTo(x, middle - size - 1);
      pen.lineTo(x + size + 1, middle + size);
      pen.lineTo(x - size - 1, middle + size);
    } else pen.arc(x, middle, state.level === "ok" ? 3.5 : 3, 0, 7);
    pen.fill();
    pen.font = state.level === "error" || state.level === "warning" ? `600 ${FONT}` : FONT;
    pen.fillStyle = state.level === "ok" || state.level === "none" ? colours.muted : colours.fg;
    const count = line.to - line.from > 1 && state.level !== "ok" ? ` ×${state.count}` : "";
    write(pen, `${state.word}${count}`, place.x + 16, middle, place.width - 18);
  }

  frameOf(pen, area, layout, colours, width, seen) {
    const { run, metric, column, data } = this.ctx;
    pen.fillStyle = colours.card;
    pen.fillRect(0, 0, width, HEAD - 1);
    pen.fillRect(0, HEAD + seen, width, FOOT);
    pen.strokeStyle = colours.line;
    pen.lineWidth = 1;
    pen.strokeRect(area.x - 0.5, HEAD - 0.5, area.width + 1, seen + 1);
    pen.textBaseline = "alphabetic";
    const title = (text, x, room, align) => {
      pen.font = `600 ${FONT}`;
      pen.fillStyle = colours.fg;
      write(pen, text, x, 15, room, align);
    };
    const below = (text, x, room, align) => {
      pen.font = SMALL;
      pen.fillStyle = colours.muted;
      write(pen, text, x, 31, room, align);
    };
    title("layer", 6, layout.name.width);
    below("input first, loss last", 6, layout.name.width - 4);
    title(`${metric.title}, ${metric.of === "layers" ? "by layer" : "by activation"} and step`, area.x, area.width);
    below(this.lineWords(), area.x, area.width);
    for (const bar of layout.bars) {
      title(bar.metric.title.replace(" norm", "").replace(" units", ""), bar.x, bar.width);
      const scale = bar.metric.log ? atLeast(data.scale(bar.metric), 4) : null;
      below(scale ? `1e${scale.low} to 1e${scale.high}` : "of units", bar.x, bar.width);
    }
    title("state", layout.state.x, layout.state.width);
    below(run.columns ? `at ${run.stepsIn(column)}` : "", layout.state.x, layout.state.width);
    const wide = area.width / Math.max(run.columns, 1);
    pen.font = SMALL;
    pen.fillStyle = colours.muted;
    for (const place of labelled(run.columns, Math.max(2, Math.floor(area.width / 80)))) {
      const x = area.x + (place + 0.5) * wide;
      pen.fillRect(x, HEAD + seen + 1, 1, 4);
      const text = String(run.steps.last[place]);
      const half = pen.measureText(text).width / 2;
      const centre = Math.min(Math.max(x, area.x + half), area.x + area.width - half);
      write(pen, text, centre, HEAD + seen + 17, 80, "center");
    }
    write(pen, "step", area.x - 8, HEAD + seen + 17, layout.name.width, "right");
    if (run.columns) {
      const x = area.x + (column + 0.5) * wide;
      pen.strokeStyle = colours.accent;
      pen.lineWidth = 1.5;
      pen.setLineDash([4, 3]);
      pen.beginPath();
      pen.moveTo(x, HEAD);
      pen.lineTo(x, HEAD + seen);
      pen.stroke();
      pen.setLineDash([]);
      pen.fillStyle = colours.accent;
      pen.beginPath();
      pen.moveTo(x, HEAD + seen + 1);
      pen.lineTo(x - 5, HEAD + seen + 8);
      pen.lineTo(x + 5, HEAD + seen + 8);
      pen.fill();
    }
  }

  /** Say what the contour is. */
  lineWords() {
    const { run, metric } = this.ctx;
    const own = run.lines.filter((line) => line.metric === metric.name);
    if (!own.length) return "";
    const told = own.map((line) => `${line.code} ${line.side === "below" ? "<" : ">"} ${spelled(metric, line.value)}${line.of_last ? " × last" : ""}`);
    return `white line: ${told.join(", ")}`;
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const under = y - HEAD + this.scroller.scrollTop;
    if (y < HEAD || y > HEAD + this.seen) return null;
    const line = this.lines.find((each) => under >= each.top && under < each.top + each.height);
    if (!line) return null;
    const count = line.to - line.from;
    const row = line.kind === "group" && line.open ? line.from : line.from + Math.floor(((under - line.top) * count) / line.height);
    const { heat, name } = this.layout;
    const inside = x >= heat.x && x < heat.x + heat.width;
    const column = inside ? Math.floor(((x - heat.x) * this.ctx.run.columns) / heat.width) : this.ctx.column;
    return { line, row: Math.min(row, line.to - 1), column, inside, onName: x <= name.width, x, y };
  }

  onMove(event) {
    const at = this.at(event);
    if (!at || (at.line.kind === "group" && at.line.open)) return this.hide();
    const { run, metric } = this.ctx;
    const value = run.value(metric, at.row, at.column);
    const state = stateOf(run, at.row, at.column);
    this.tip.replaceChildren(
      h("strong", {}, h("bdi", { text: run.nameOf(at.row) })),
      h("div", { text: run.columns ? run.stepsIn(at.column) : "" }),
      h("div", { text: `${metric.title}: ${Number.isNaN(value) ? "not measured" : spelled(metric, value)}` }),
      h("div", { text: state.word }),
    );
    this.tip.hidden = false;
    const room = this.element.clientWidth;
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${Math.min(at.x + 14, room - wide - 4)}px`;
    this.tip.style.top = `${at.y + 16}px`;
    return undefined;
  }

  hide() {
    this.tip.hidden = true;
  }

  onClick(event) {
    const at = this.at(event);
    if (!at) return;
    if (at.line.kind === "group" && (at.onName || at.line.open)) this.fold(at.line.from);
    else this.ctx.choose(at.row, at.inside ? at.column : null);
  }

  onOpen(event) {
    const at = this.at(event);
    if (at && !(at.line.kind === "group" && (at.onName || at.line.open))) this.ctx.openLayer(at.row);
  }

  fold(from) {
    this.open.touched = true;
    if (this.open.has(from)) this.open.delete(from);
    else this.open.add(from);
    this.stack();
  }

  /** Fold or unfold all groups. */
  foldAll(folded) {
    this.open.touched = true;
    this.open.clear();
    if (!folded) this.groups.forEach((group) => this.open.add(group.from));
    this.stack();
  }

  onKey(event) {
    const { ctx } = this;
    const rows = ctx.run.rows.length;
    const row = ctx.row < 0 ? 0 : ctx.row;
    const group = this.groups.find((each) => row >= each.from && row < each.to);
    const moves = {
      ArrowDown: () => ctx.choose(Math.min(ctx.row + 1, rows - 1), null),
      ArrowUp: () => ctx.choose(Math.max(row - 1, 0), null),
      PageDown: () => ctx.choose(Math.min(row + 10, rows - 1), null),
      PageUp: () => ctx.choose(Math.max(row - 10, 0), null),
      ArrowRight: () => ctx.choose(null, Math.min(ctx.column + 1, ctx.run.columns - 1)),
      ArrowLeft: () => ctx.choose(null, Math.max(ctx.column - 1, 0)),
      Home: () => ctx.choose(0, null),
      End: () => ctx.choose(rows - 1, null),
      Enter: () => ctx.openLayer(row),
      "+": () => group && !this.open.has(group.from) && this.fold(group.from),
      "-": () => group && this.open.has(group.from) && this.fold(group.from),
    };
    if (!(event.key in moves) || event.ctrlKey || event.altKey || event.metaKey || !rows) return;
    event.preventDefault();
    moves[event.key]();
  }

  /** Bring a row into sight. */
  reveal(row) {
    const line = this.lines.find((each) => row >= each.from && row < each.to && !(each.kind === "group" && each.open));
    if (!line) return;
    const top = this.scroller.scrollTop;
    if (line.top < top) this.scroller.scrollTop = line.top;
    else if (line.top + line.height > top + this.seen) this.scroller.scrollTop = line.top + line.height - this.seen;
  }

  /** The whole of it as a picture. */
  picture() {
    const canvas = document.createElement("canvas");
    const width = Math.floor(this.scroller.clientWidth);
    this.paint(canvas, width, Math.min(this.total, 8000), 0);
    return canvas;
  }
}

function told1(metric, value) {
  return metric.log ? number(value, 1) : spelled(metric, value);
}

/** From where to where some rows stand, one span for those that follow each other. */
function spansOf(lines, rows) {
  const spans = [];
  for (const line of lines) {
    if (line.kind === "group" && line.open) {
      const last = spans[spans.length - 1];
      if (last && last[1] === line.top && rows.has(line.from)) last[1] = line.top + line.height;
      continue;
    }
    const high = line.height / (line.to - line.from);
    for (let row = line.from; row < line.to; row += 1) {
      if (!rows.has(row)) continue;
      const [top, bottom] = [line.top + (row - line.from) * high, line.top + (row + 1 - line.from) * high];
      const last = spans[spans.length - 1];
      if (last && Math.abs(last[1] - top) < 0.5) last[1] = bottom;
      else spans.push([top, bottom]);
    }
  }
  return spans;
}
