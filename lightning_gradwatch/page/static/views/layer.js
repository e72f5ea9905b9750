// One layer's page: its curves, what was found there, and what stands before and behind it.
import { Chart } from "../chart.js";
import { h, named } from "../dom.js";
import { number, percent } from "../scales.js";
import { aboveZeroSince, findingsOf, stateOf } from "../states.js";
import { findingCard } from "./verdict.js";

const USUAL_UPDATE = 1e-3;

/** The page of the row that is chosen. */
export class LayerView {
  constructor(ctx) {
    const { run, row } = ctx;
    this.charts = [];
    if (row < 0 || !run.columns) {
      this.element = h("section", { class: "gw-panel" }, h("p", { class: "gw-empty", text: ctx.place.row ? "This run has no layer of that name." : "Choose a layer in the overview." }));
      return;
    }
    const zoom = (ctx.zooms.steps?.to === run.columns - 1 || ctx.zooms.steps?.columns === run.columns) ? ctx.zooms.steps : (ctx.zooms.steps = { from: 0, to: run.columns - 1, columns: run.columns });
    for (const metric of ctx.data.shown) {
      const curve = run.curve(metric, row);
      if (!curve || curve.every((value) => Number.isNaN(value))) continue;
      this.charts.push(this.chartOf(ctx, metric, curve, zoom));
    }
    for (const scalar of run.scalars) {
      if (scalar.name !== "loss" || scalar.values.every((value) => Number.isNaN(value))) continue;
      this.charts.push(new Chart({ title: "loss of the run", height: 190, log: scalar.values.every((value) => !(value <= 0)), labels: run.steps.last, curves: [{ label: "", values: Float64Array.from(scalar.values), colour: ctx.colours().muted }], colours: () => ctx.colours(), zoom, mark: ctx.column, onPick: (place) => ctx.choose(null, place) }));
    }
    const found = findingsOf(run, row);
    this.element = h(
      "section",
      { class: "gw-panel", "aria-label": `Layer ${run.nameOf(row)}` },
      this.head(ctx),
      found.length ? h("div", { class: "gw-found" }, ...found.map((finding) => findingCard(ctx, finding))) : h("p", { class: "gw-note", text: "Nothing was found here." }),
      this.deadSentence(ctx),
      h("div", { class: "gw-charts" }, ...this.charts.map((chart) => chart.element)),
      h("p", { class: "gw-keys", text: "Drag to zoom all charts, double-click to see all, click to choose a step." }),
    );
  }

  chartOf(ctx, metric, curve, zoom) {
    const { run, row } = ctx;
    const colours = ctx.colours();
    const own = run.lines.filter((line) => line.metric === metric.name && !line.of_last);
    const lines = own.map((line) => ({ value: line.value, label: `${line.code}: ${line.side} ${metric.log ? number(line.value) : percent(line.value)}` }));
    if (metric.name === "update_ratio") lines.push({ value: USUAL_UPDATE, label: "1e-3 is usual", colour: colours.ok, always: true });
    const others = ctx.data.runs.filter((other) => other !== run && other.columns === run.columns && other.rowNamed(run.nameOf(row)) >= 0);
    const chart = new Chart({
      title: metric.title, description: metric.description, height: 190, log: metric.log, labels: run.steps.last, lines, zoom,
      curves: [
        { label: others.length ? run.name : "", values: curve, colour: ctx.runColour(run) },
        ...others.slice(0, 3).flatMap((other) => {
          const beside = other.curve(metric, other.rowNamed(run.nameOf(row)));
          return beside ? [{ label: other.name, values: beside, colour: ctx.runColour(other), dash: [5, 3] }] : [];
        }),
      ],
      colours: () => ctx.colours(), mark: ctx.column, onPick: (place) => ctx.choose(null, place),
    });
    if (!metric.log && ctx.data.scale(metric).high <= 1) chart.fixed = { log: false, low: 0, high: 1 };
    return chart;
  }

  head(ctx) {
    const { run, row } = ctx;
    const [layer, site] = [run.layer(row), run.site(row)];
    const facts = [
      layer?.kind, layer?.shapes?.length ? layer.shapes.map((shape) => shape.join("×")).join(", ") : "",
      layer?.parameters ? `${layer.parameters.toLocaleString("en")} parameters` : "", layer?.gone || site?.gone ? "gone in the newest layout" : "",
    ].filter(Boolean);
    const before = row > 0 ? [row - 1] : [];
    const after = row + 1 < run.rows.length ? [row + 1] : [];
    const feeding = site?.predecessors?.map((name) => run.rowNamed(name)).filter((each) => each >= 0 && each !== row) ?? [];
    const fed = site ? run.sites.flatMap((other) => (other.predecessors?.includes(site.name) ? [run.rowNamed(other.name)] : [])).filter((each) => each >= 0 && each !== row) : [];
    const links = (label, rows) => (rows.length ? h("div", {}, `${label} `, ...rows.slice(0, 6).flatMap((each, place) => [place ? ", " : "", this.link(ctx, each)]), rows.length > 6 ? ` and ${rows.length - 6} more` : "") : null);
    const state = stateOf(run, row, ctx.column);
    return h(
      "header",
      { class: "gw-layer-head" },
      h("h2", {}, named(run.nameOf(row), { class: "gw-name" }), h("span", { class: `gw-state gw-${state.level}`, text: state.word })),
      h("p", { class: "gw-note" }, facts.join(", "), site ? h("span", {}, `${facts.length ? "; " : ""}activation `, named(site.name), site.gone ? "" : ` (${site.function}, ${site.role}${site.units ? `, ${site.units} units` : ""})`) : null),
      h("nav", { class: "gw-neighbours", "aria-label": "Neighbours" }, links("before it on the path:", before), links("behind it:", after), links("its activation is fed by", feeding), links("and feeds", fed)),
    );
  }

  link(ctx, row) {
    const to = { ...ctx.place, view: "layer", row: ctx.run.nameOf(row), finding: "" };
    return h("a", { href: ctx.hrefOf(to), class: "gw-link", onclick: (event) => { event.preventDefault(); ctx.go(to); } }, named(ctx.run.nameOf(row)));
  }

  /** Since when units are dead. */
  deadSentence(ctx) {
    const { run, row } = ctx;
    const metric = ctx.data.metric("dead_fraction");
    const curve = metric && run.curve(metric, row);
    if (!curve || curve.every((value) => Number.isNaN(value))) return null;
    const units = run.site(row)?.units ?? 0;
    const now = curve[ctx.column];
    if (!(now > 0)) return Number.isNaN(now) ? null : h("p", { class: "gw-note", text: `No unit is dead at ${run.stepsIn(ctx.column)}.` });
    const since = aboveZeroSince(curve, run);
    const count = units ? `${Math.round(now * units)} of ${units} units (${percent(now)})` : `${percent(now)} of the units`;
    return h("p", { class: "gw-lead", text: `${count} are dead at ${run.stepsIn(ctx.column)}${since === null ? "" : `; some have been since step ${since}`}.` });
  }

  destroy() {
    this.charts.forEach((chart) => chart.destroy());
  }

  refresh() {
    this.charts.forEach((chart) => chart.later());
  }
}
