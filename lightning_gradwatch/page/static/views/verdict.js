// What was found, in words: the root cause first, with what to do about it.
import { h, named } from "../dom.js";
import { outcomeWord } from "../states.js";
import { shortened } from "../groups.js";

const MOST_NAMES = 4;

function where(finding) {
  const names = finding.layers;
  if (!names.length) return [];
  const shown = names.length <= MOST_NAMES ? names : [names[0], names[names.length - 1]];
  const parts = [" at "];
  shown.forEach((name, place) => {
    if (place) parts.push(names.length <= MOST_NAMES ? ", " : " … ");
    parts.push(named(shortened(name, 48), { class: "gw-name", title: name }));
  });
  if (names.length > MOST_NAMES) parts.push(` (${names.length} in all)`);
  return parts;
}

function since(finding) {
  const healed = finding.healed_step === null ? "" : `, healed by step ${finding.healed_step}`;
  return `${finding.severity} since step ${finding.first_step}${healed}`;
}

function link(ctx, finding) {
  const to = { ...ctx.place, view: "overview", finding: finding.id };
  return h("a", {
    href: ctx.hrefOf(to), class: "gw-link", title: "A link to this finding",
    onclick: (event) => {
      event.preventDefault();
      ctx.go(to);
    },
    text: finding.code,
  });
}

function row(label, text) {
  return text ? h("div", { class: "gw-said" }, h("dt", { text: label }), h("dd", { text })) : null;
}

/** One finding with all that is said of it. */
export function findingCard(ctx, finding) {
  const chosen = ctx.place.finding === finding.id;
  return h(
    "article",
    { class: `gw-finding gw-${finding.severity}${chosen ? " gw-chosen" : ""}`, id: `gw-finding-${finding.id}` },
    h("h3", {}, link(ctx, finding), ` ${finding.words}`, h("span", { class: "gw-where" }, ...where(finding)), h("span", { class: "gw-since", text: since(finding) })),
    h("dl", {}, row("seen", finding.message), row("why", finding.cause), row("do", finding.remedy.text)),
  );
}

function line(ctx, finding) {
  const chosen = ctx.place.finding === finding.id;
  const says = ctx.data.rules[finding.code]?.says;
  return h(
    "li",
    { class: chosen ? "gw-chosen" : "", id: `gw-finding-${finding.id}`, title: says },
    link(ctx, finding), ` ${finding.words}`, ...where(finding), `: ${since(finding)}`,
    finding.consequence_of ? `, follows from ${finding.consequence_of}` : `. ${finding.seen}.`,
  );
}

/** The verdict on the run that is shown. */
export function verdictView(ctx) {
  const { run } = ctx;
  const open = run.findings.filter((finding) => finding.severity !== "info" && finding.healed_step === null);
  const roots = open.filter((finding) => !finding.consequence_of);
  const rest = open.filter((finding) => finding.consequence_of);
  const notes = run.findings.filter((finding) => !open.includes(finding));
  const measured = run.columns ? `${run.measured} measured steps, ${run.steps.first[0]} to ${run.steps.last.at(-1)}; ${run.layers.length} layers, ${run.sites.length} activations` : "nothing measured";
  const head = h(
    "header",
    { class: `gw-verdict gw-outcome-${run.outcome}` },
    h("h2", {}, h("span", { class: "gw-mark", "aria-hidden": "true" }), h("span", { text: headline(run, roots) })),
    h("p", { class: "gw-measured", text: measured }),
  );
  const [first, ...others] = roots;
  return h(
    "section",
    { class: "gw-verdicts", "aria-label": "Verdict" },
    head,
    run.failure ? h("p", { class: "gw-failure", text: run.failure }) : null,
    first ? findingCard(ctx, first) : null,
    ...others.map((finding) => findingCard(ctx, finding)),
    rest.length ? h("ul", { class: "gw-rest", "aria-label": "What follows" }, ...rest.map((finding) => line(ctx, finding))) : null,
    notes.length || run.unjudged.length || run.problems.length || run.coverage.length || run.settings_file ? asides(ctx, notes) : null,
  );
}

function headline(run, roots) {
  if (!roots.length) return outcomeWord(run)[0].toUpperCase() + outcomeWord(run).slice(1);
  const words = [...new Set(roots.map((finding) => finding.words))];
  return `Not healthy: ${words.join(", ")}`;
}

function counted(count, one, more) {
  return count ? `${count} ${count === 1 ? one : more}` : "";
}

function asides(ctx, notes) {
  const { run } = ctx;
  const told = [
    notes.length ? `${notes.length} for information` : "",
    counted(run.unjudged.length, "rule not judged", "rules not judged"),
    counted(run.problems.length, "note on the file", "notes on the file"),
    run.settings_file ? "settings" : "",
    counted(run.coverage.length, "place not covered", "places not covered"),
  ].filter(Boolean);
  const chosen = notes.some((finding) => finding.id === ctx.place.finding);
  return h(
    "details",
    { class: "gw-asides", open: chosen || run.outcome === "unknown" },
    h("summary", { text: told.join(", ") }),
    h(
      "ul", {},
      ...notes.map((finding) => line(ctx, finding)),
      ...run.unjudged.map((each) => h("li", { text: `not judged: ${each.code} ${each.name}: ${each.reason}` })),
      ...run.problems.map((text) => h("li", { text })),
      run.settings_file ? h("li", { text: `settings: ${run.settings_file}` }) : null,
      ...run.coverage.map((each) => h("li", {}, "not covered: ", named(each.name), ` ${each.reason}`)),
    ),
  );
}
