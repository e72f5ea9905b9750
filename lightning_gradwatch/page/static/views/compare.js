// Two runs beside each other: what a comparison says, the first layer that parts, and the difference row by row.
import { h, named } from "../dom.js";
import { pairedDifference } from "../pairs.js";
import { number, percent, position, plainNumber, spelled } from "../scales.js";
import { outcomeWord } from "../states.js";

const MOST_TOLD = 12;

function counted(worse) {
  return worse ? `${worse} ${worse === 1 ? "number is" : "numbers are"} worse` : "no number is worse";
}

/** How far a run is from the base, in words. */
export function farWords(metric, pair) {
  if (Number.isNaN(pair.far)) return "–";
  if (!metric.log) return `${pair.far > 0 ? "+" : ""}${(100 * pair.far).toFixed(0)} points`;
  if (pair.far === 0) return "same";
  if (!Number.isFinite(pair.far)) return pair.base === 0 ? "was exactly 0" : pair.run === 0 ? "is exactly 0" : "not finite";
  return `${number(10 ** pair.far, 2)} times`;
}

/** The runs against the first one. */
export class CompareView {
  constructor(ctx) {
    const { data, run, metric } = ctx;
    const [base] = data.runs;
    const other = run.place ? run : data.runs[1];
    if (!other || !metric) {
      this.element = h("section", { class: "gw-panel" }, h("p", { class: "gw-empty", text: "A comparison takes two runs: gradwatch report BASE RUN." }));
      return;
    }
    const told = data.comparisons.find((each) => each.run === other.place);
    const { rows, first } = pairedDifference(base, other, metric);
    this.element = h(
      "section",
      { class: "gw-panel", "aria-label": "Comparison" },
      h("h2", {}, named(other.name), ` (${outcomeWord(other)}) beside `, named(base.name), ` (${outcomeWord(base)})`),
      this.firstSentence(ctx, rows, first, base, other),
      told ? this.told(ctx, told) : null,
      this.metrics(ctx),
      this.table(ctx, rows, first, base, other),
    );
  }

  firstSentence(ctx, rows, first, base, other) {
    const { metric } = ctx;
    if (first < 0) return h("p", { class: "gw-lead", text: `By ${metric.title}, no layer parts by more than ${metric.log ? "3 times" : "10 points"} (medians over the steps that both have).` });
    const pair = rows[first];
    return h(
      "p", { class: "gw-lead" },
      `By ${metric.title}, the first layer that parts is `, named(other.nameOf(pair.row), { class: "gw-name" }), `: `,
      named(base.name), ` ${spelled(metric, pair.base)}, `, named(other.name), ` ${spelled(metric, pair.run)}, ${farWords(metric, pair)}.`,
    );
  }

  told(ctx, told) {
    if (told.failure) return h("p", { class: "gw-failure", text: told.failure });
    const worse = told.worse.map((change) => {
      const metric = ctx.data.metric(change.metric);
      const spell = (value) => (metric && !metric.log ? percent(plainNumber(value)) : number(plainNumber(value)));
      return h("li", {}, `worse: ${metric?.title ?? change.metric.replaceAll("_", " ")} `, change.name ? "of " : "", named(change.name), `: ${spell(change.base)} → ${spell(change.run)}`);
    });
    const lists = [["found there only", told.gone], ["found here only", told.new]].flatMap(([says, codes]) => (codes.length ? [h("li", { text: `${says}: ${codes.join(", ")}` })] : []));
    return h(
      "details", { class: "gw-asides", open: true },
      h("summary", { text: `${counted(told.worse.length)}; ${told.compared}` }),
      h("ul", {}, ...lists, ...worse.slice(0, MOST_TOLD), worse.length > MOST_TOLD ? h("li", { text: `and ${worse.length - MOST_TOLD} more` }) : null),
    );
  }

  metrics(ctx) {
    const choice = h("div", { class: "gw-metrics", role: "radiogroup", "aria-label": "Metric" });
    for (const metric of ctx.data.shown) {
      const chosen = metric === ctx.metric;
      choice.append(h("button", { type: "button", role: "radio", "aria-checked": String(chosen), class: chosen ? "gw-on" : "", text: metric.title, title: metric.description, onclick: () => ctx.go({ ...ctx.place, metric: metric.name }) }));
    }
    return h("div", { class: "gw-tools" }, choice);
  }

  table(ctx, rows, first, base, other) {
    const { metric, data } = ctx;
    const scale = data.scale(metric);
    const most = Math.max(...rows.map((pair) => Math.abs(pair.far)).filter(Number.isFinite), metric.log ? 1 : 0.1);
    const shown = first > 0 ? [rows[first], ...rows.filter((_, place) => place !== first)] : rows;
    const bar = (value, kind) => {
      const inner = h("span", { class: `gw-bar gw-bar-${kind}` });
      const share = position(scale, value);
      inner.style.width = `${Number.isNaN(share) ? 0 : 100 * share}%`;
      return h("td", { class: "gw-bar-cell" }, inner, h("span", { class: "gw-bar-text", text: spelled(metric, value) }));
    };
    const off = (pair) => {
      const inner = h("span", { class: `gw-off ${pair.far < 0 ? "gw-less" : "gw-more"}` });
      const share = Number.isFinite(pair.far) ? Math.min(Math.abs(pair.far) / most, 1) : Number.isNaN(pair.far) ? 0 : 1;
      inner.style.width = `${50 * share}%`;
      return h("td", { class: "gw-off-cell" }, inner, h("span", { class: "gw-bar-text", text: farWords(metric, pair) }));
    };
    return h(
      "div", { class: "gw-table-holder gw-paired" },
      h("table", {},
        h("caption", { text: `${metric.title}, medians over the steps that both have` }),
        h("thead", {}, h("tr", {}, ...["layer", base.name, other.name, "difference"].map((text) => h("th", { scope: "col" }, named(text))))),
        h("tbody", {}, ...shown.map((pair, place) => {
          const [name, before] = [other.nameOf(pair.row), pair.other >= 0 ? base.nameOf(pair.other) : ""];
          return h(
            "tr", { class: pair.parts ? "gw-parts" : "" },
            h("th", { scope: "row" }, named(name, { class: "gw-name", title: name }), before && before !== name ? h("span", { class: "gw-muted" }, " / ", named(before)) : null, first > 0 && !place ? h("span", { class: "gw-muted", text: " parts first" }) : null),
            bar(pair.base, "base"), bar(pair.run, "run"), off(pair),
          );
        })),
      ),
    );
  }

  destroy() {}

  refresh() {}
}
