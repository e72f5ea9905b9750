// The first view: the heatmap of a metric, the rows beside it, its legend, and the same as a table.
import { fileName, h, named, prepared, save, write } from "../dom.js";
import { metricCsv } from "../csv.js";
import { PATTERNS } from "../heat.js";
import { colour, number, percent, spelled, ticks } from "../scales.js";
import { stateOf } from "../states.js";
import { RowsView } from "./rows.js";

/** The overview of the run that is shown. */
export class Overview {
  constructor(ctx) {
    this.ctx = ctx;
    if (!ctx.metric || !ctx.run.columns) {
      this.element = h("section", { class: "gw-panel" }, h("p", { class: "gw-empty", text: "There is no measured step to show." }));
      return;
    }
    this.rows = new RowsView(ctx);
    this.legend = h("canvas", { class: "gw-canvas gw-legend", role: "img", "aria-label": `Colours of ${ctx.metric.title}` });
    this.element = h(
      "section",
      { class: "gw-panel", "aria-label": "Layers by steps" },
      this.tools(),
      this.rows.element,
      h("div", { class: "gw-under" }, this.legend, this.keys(), this.buttons()),
      this.table(),
    );
    ctx.drawn = () => this.drawLegend();
  }

  tools() {
    const { ctx } = this;
    const choice = h("div", { class: "gw-metrics", role: "radiogroup", "aria-label": "Metric" });
    for (const metric of ctx.data.shown) {
      const chosen = metric === ctx.metric;
      choice.append(
        h("button", {
          type: "button", role: "radio", "aria-checked": String(chosen), class: chosen ? "gw-on" : "", title: metric.description,
          text: metric.title, tabindex: chosen ? "0" : "-1", onclick: () => ctx.go({ ...ctx.place, metric: metric.name }),
          onkeydown: (event) => this.onMetricKey(event),
        }),
      );
    }
    return h("div", { class: "gw-tools" }, choice);
  }

  buttons() {
    const button = (text, title, onclick) => h("button", { type: "button", text, title, onclick });
    return h(
      "div", { class: "gw-buttons" },
      button("Fold", "Fold all groups", () => this.rows.foldAll(true)),
      button("Unfold", "Show each layer", () => this.rows.foldAll(false)),
      button("PNG", "Save as a picture", () => this.savePicture()),
      button("CSV", "Save this metric as a table", () => this.saveTable()),
    );
  }

  onMetricKey(event) {
    const { ctx } = this;
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const { shown } = ctx.data;
    const next = shown[(shown.indexOf(ctx.metric) + by + shown.length) % shown.length];
    ctx.go({ ...ctx.place, metric: next.name });
    ctx.root.querySelector('.gw-metrics [aria-checked="true"]')?.focus();
  }

  keys() {
    return h("p", { class: "gw-keys", text: "Double-click opens a layer. Arrows, Enter, + and −." });
  }

  drawLegend() {
    const { ctx, legend } = this;
    const width = Math.min(620, Math.floor(legend.parentElement.clientWidth));
    if (width < 60) return;
    const colours = ctx.colours();
    const { pen } = prepared(legend, width, 44);
    const scale = ctx.data.scale(ctx.metric);
    const bar = { x: 26, width: Math.min(230, width * 0.4), y: 4, height: 14 };
    for (let x = 0; x < bar.width; x += 1) {
      const [red, green, blue] = colour(x / bar.width);
      pen.fillStyle = `rgb(${red}, ${green}, ${blue})`;
      pen.fillRect(bar.x + x, bar.y, 1.2, bar.height);
    }
    pen.font = '11px system-ui, -apple-system, "Segoe UI", sans-serif';
    pen.textBaseline = "middle";
    const marks = ticks(scale, 5);
    for (const tick of marks) {
      const share = scale.log ? (Math.log10(tick) - scale.low) / (scale.high - scale.low) : (tick - scale.low) / (scale.high - scale.low);
      pen.fillStyle = colours.muted;
      pen.fillRect(bar.x + share * bar.width, bar.y + bar.height, 1, 4);
      write(pen, scale.log ? number(tick, 1) : scale.high <= 1 ? percent(tick) : number(tick), bar.x + share * bar.width, bar.y + bar.height + 13, 60, "center");
    }
    let x = bar.x + bar.width + 36;
    const special = [
      ...(scale.log ? [["exactly 0", PATTERNS.zero, "hatch"]] : []),
      ["not finite", PATTERNS.nonFinite, "dots"],
      ["not measured", { base: colours.absent }, ""],
    ];
    for (const [says, { base, mark }, kind] of special) {
      pen.fillStyle = `rgb(${base.join(", ")})`;
      pen.fillRect(x, bar.y, 22, bar.height);
      if (mark) pen.fillStyle = `rgb(${mark.join(", ")})`;
      for (let across = 0; kind && across < 22; across += 1) {
        for (let down = 0; down < bar.height; down += 1) {
          if (kind === "hatch" ? (across + down) % 6 < 2 : across % 5 < 2 && down % 5 < 2) pen.fillRect(x + across, bar.y + down, 1, 1);
        }
      }
      pen.strokeStyle = colours.line;
      pen.strokeRect(x - 0.5, bar.y - 0.5, 23, bar.height + 1);
      pen.fillStyle = colours.fg;
      write(pen, says, x + 28, bar.y + bar.height / 2, 90);
      x += 28 + Math.min(pen.measureText(says).width, 90) + 16;
    }
  }

  /** The rows as a table, made when it is opened: with thousands of rows it takes a while. */
  table() {
    const { ctx } = this;
    const body = h("div", { class: "gw-table-holder" });
    const details = h("details", { class: "gw-as-table" }, h("summary", { text: "The same as a table" }), body);
    details.addEventListener("toggle", () => {
      if (!details.open || body.firstChild) return;
      body.append(rowTable(ctx));
    });
    return details;
  }

  savePicture() {
    const { ctx } = this;
    this.rows.picture().toBlob((blob) => save(`${fileName("gradwatch", ctx.run.name, ctx.metric.name)}.png`, blob), "image/png");
  }

  saveTable() {
    const { ctx } = this;
    const text = metricCsv(ctx.run, ctx.metric);
    save(`${fileName("gradwatch", ctx.run.name, ctx.metric.name)}.csv`, new Blob([text], { type: "text/csv" }));
  }

  destroy() {
    this.rows?.destroy();
  }

  refresh() {
    this.rows?.later();
  }
}

/** A row a layer, a column a metric, at the step that is chosen. */
export function rowTable(ctx) {
  const { run, column, data } = ctx;
  const heads = ["layer", "activation", "state", ...data.shown.map((metric) => metric.title)];
  return h(
    "table", {},
    h("caption", { text: `${run.name} at ${run.stepsIn(column)}` }),
    h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col", text })))),
    h("tbody", {}, ...run.rows.map((_, row) => h(
      "tr", {},
      h("th", { scope: "row" }, named(run.layer(row)?.name ?? "–")),
      h("td", {}, named(run.site(row)?.name ?? "–")),
      h("td", { text: stateOf(run, row, column).word }),
      ...data.shown.map((metric) => h("td", { text: spelled(metric, run.value(metric, row, column)) })),
    ))),
  );
}
