// The page: mounted in an element by each host, from the same model.
import { readModel } from "./data.js";
import { h, named } from "./dom.js";
import { readPlace, writePlace } from "./route.js";
import { outcomeWord, stateOf } from "./states.js";
import { CompareView } from "./views/compare.js";
import { DepthView } from "./views/depth.js";
import { LayerView } from "./views/layer.js";
import { Overview } from "./views/overview.js";
import { verdictView } from "./views/verdict.js";

const VIEWS = [
  ["overview", "Overview", Overview],
  ["depth", "Depth profile", DepthView],
  ["layer", "Layer", LayerView],
  ["compare", "Compare", CompareView],
];
const RUN_COLOURS = ["#3b78c3", "#c8662b", "#2f8f5b", "#8a5fb8", "#b3477d", "#6b7a1f", "#27838f", "#8d6140"];
const CANVAS_COLOURS = ["fg", "muted", "line", "card", "stripe", "chosen", "accent", "error", "warning", "info", "ok", "bar", "bar-ill", "backing", "signal", "gradient", "activation", "weight", "zero", "non-finite"];

/** What stands first: the signal, if a finding is about its depth, else the first metric that a row has. */
function firstMetric(data, run) {
  const measured = data.shown.filter((metric) => run.has(metric.name));
  const ill = [run, ...data.runs].find((each) => each.findings.some((finding) => finding.severity !== "info"));
  const root = ill?.findings.find((finding) => finding.severity !== "info");
  const judged = root && ill.lines.find((line) => line.code === root.code && run.has(line.metric));
  return measured.find((metric) => metric.name === judged?.metric) ?? measured[0] ?? null;
}

class Page {
  constructor(element, model, options) {
    this.root = h("div", { class: "gw" });
    this.host = element;
    this.options = options;
    this.place = readPlace(options.place);
    this.groups = new Map();
    this.zooms = {};
    this.path = 0;
    this.live = h("div", { class: "gw-live", "aria-live": "polite", role: "status" });
    this.setTheme(options.theme ?? "");
    element.replaceChildren(this.root);
    this.dark = globalThis.matchMedia?.("(prefers-color-scheme: dark)");
    this.onDark = () => this.setTheme(this.theme);
    this.dark?.addEventListener("change", this.onDark);
    this.update(model);
  }

  update(model) {
    try {
      this.data = readModel(model);
    } catch (error) {
      this.root.replaceChildren(h("p", { class: "gw-failure", role: "alert", text: error.message }));
      return;
    }
    this.render();
  }

  setTheme(theme) {
    this.theme = theme;
    this.root.dataset.theme = theme;
    this.colours_ = null;
    this.view?.refresh();
  }

  /** The colours of the canvases, from the style. */
  colours() {
    if (!this.colours_) {
      const style = getComputedStyle(this.root);
      this.colours_ = Object.fromEntries(CANVAS_COLOURS.map((name) => [name.replace(/-(\w)/g, (_, sign) => sign.toUpperCase()), style.getPropertyValue(`--${name}`).trim()]));
      this.colours_.absent = style.getPropertyValue("--absent").split(",").map(Number);
    }
    return this.colours_;
  }

  runColour(run) {
    return /^#[0-9a-f]{6}$/i.test(run.colour) ? run.colour : RUN_COLOURS[run.place % RUN_COLOURS.length];
  }

  get run() {
    return this.data.runs[Math.min(this.place.run, this.data.runs.length - 1)];
  }

  get metric() {
    const { shown } = this.data;
    return shown.find((metric) => metric.name === this.place.metric && this.run.has(metric.name)) ?? firstMetric(this.data, this.run);
  }

  /** The column that is chosen: the place's step, else the last at which the first finding holds, else the last one. */
  get column() {
    const { run } = this;
    if (this.place.step !== null) return run.columnOf(this.place.step);
    const told = this.finding ?? run.findings.find((finding) => finding.severity !== "info" && finding.healed_step === null);
    return told ? run.columnOf(told.last_step) : Math.max(run.columns - 1, 0);
  }

  get finding() {
    return this.run.findings.find((finding) => finding.id === this.place.finding) ?? null;
  }

  get row() {
    if (this.place.row) return this.run.rowNamed(this.place.row);
    const told = this.finding ?? this.run.findings.find((finding) => finding.severity !== "info");
    return told?.layers.length ? this.run.rowNamed(told.layers[0]) : this.place.view === "layer" && this.run.rows.length ? 0 : -1;
  }

  get openGroups() {
    const key = this.run.name;
    if (!this.groups.has(key)) this.groups.set(key, new Set());
    return this.groups.get(key);
  }

  hrefOf(place) {
    return writePlace(place) || "#";
  }

  /** Go somewhere, and tell the host. */
  go(place) {
    this.place = place;
    this.options.onNavigate?.(writePlace(place));
    this.render();
    if (place.finding) this.showFinding();
  }

  navigate(text) {
    if (text === writePlace(this.place)) return;
    this.place = readPlace(text);
    this.render();
    if (this.place.finding) this.showFinding();
  }

  showFinding() {
    this.root.querySelector(`#gw-finding-${CSS.escape(this.place.finding)}`)?.scrollIntoView({ block: "nearest" });
    if (this.row >= 0) requestAnimationFrame(() => this.view?.rows?.reveal(this.row));
  }

  /** Choose a row, a column or both; null leaves one as it is. */
  choose(row, column) {
    const place = { ...this.place };
    if (row !== null) place.row = this.run.nameOf(row);
    if (column !== null) place.step = this.run.steps.last[column];
    this.place = place;
    this.options.onNavigate?.(writePlace(place));
    if (this.place.view === "overview") {
      this.view.refresh();
      this.syncSteps();
      if (row !== null) this.view.rows?.reveal(row);
    } else this.render();
    const chosen = this.row;
    if (chosen >= 0 && this.metric) {
      this.live.textContent = `${this.run.nameOf(chosen)}, ${this.run.stepsIn(this.column)}: ${stateOf(this.run, chosen, this.column).word}`;
    }
  }

  openLayer(row) {
    this.go({ ...this.place, view: "layer", row: this.run.nameOf(row), finding: "" });
  }

  choosePath(path) {
    this.path = path;
    this.render();
  }

  render() {
    const focused = this.root.contains(document.activeElement) ? document.activeElement.closest("[data-focus], .gw-rows") : null;
    const again = focused?.classList.contains("gw-rows") ? ".gw-rows" : focused ? `[data-focus="${focused.dataset.focus}"]` : null;
    const scrolled = this.view?.rows?.scroller.scrollTop ?? 0;
    const asTable = Boolean(this.root.querySelector(".gw-as-table[open]"));
    this.view?.destroy();
    this.drawn = null;
    const chosen = VIEWS.find(([name]) => name === this.place.view) ?? VIEWS[0];
    this.view = null;
    const verdict = this.place.view === "overview" ? verdictView(this) : null;
    const View = chosen[2];
    this.view = new View(this);
    this.root.replaceChildren(
      this.bar(),
      h("main", {}, verdict, this.steps(), this.view.element),
      this.foot(),
      this.live,
    );
    if (asTable) this.root.querySelector(".gw-as-table")?.setAttribute("open", "");
    if (this.view.rows) {
      this.view.rows.scroller.scrollTop = scrolled;
      this.view.rows.draw();
    } else this.view.refresh();
    if (again) this.root.querySelector(again)?.focus({ preventScroll: true });
  }

  bar() {
    const { data } = this;
    const runs = h("div", { class: "gw-runs", role: "radiogroup", "aria-label": "Run" });
    for (const run of data.runs) {
      const chosen = run === this.run;
      const dot = h("span", { class: "gw-dot", "aria-hidden": "true" });
      dot.style.background = this.runColour(run);
      runs.append(h(
        "button",
        {
          type: "button", role: "radio", "aria-checked": String(chosen), class: `gw-run gw-outcome-${run.outcome}${chosen ? " gw-on" : ""}`,
          title: run.path || run.name, "data-focus": `run-${run.place}`,
          onclick: () => this.go({ ...this.place, run: run.place, step: null, finding: "" }),
        },
        data.runs.length > 1 ? dot : null, named(run.name, { class: "gw-run-name" }), h("span", { class: "gw-run-word", text: outcomeWord(run) }),
      ));
    }
    const views = h("nav", { class: "gw-views", "aria-label": "Views" });
    for (const [name, title] of VIEWS) {
      if (name === "compare" && data.runs.length < 2) continue;
      const to = { ...this.place, view: name, finding: name === "overview" ? this.place.finding : "" };
      views.append(h("a", {
        href: this.hrefOf(to), class: name === this.place.view ? "gw-on" : "", "aria-current": name === this.place.view ? "page" : null, text: title, "data-focus": `view-${name}`,
        onclick: (event) => {
          event.preventDefault();
          this.go(to);
        },
      }));
    }
    return h("header", { class: "gw-top" }, h("h1", { text: data.title }), runs, views);
  }

  steps() {
    const { run } = this;
    if (!run.columns || this.place.view === "compare") return null;
    this.slider = h("input", {
      type: "range", min: "0", max: String(run.columns - 1), step: "1", "aria-label": "Step", "data-focus": "step",
      oninput: (event) => this.choose(null, Number(event.target.value)),
    });
    this.stepWord = h("output", { class: "gw-step-word" });
    this.syncSteps();
    return h("label", { class: "gw-steps" }, h("span", { text: "Step" }), this.slider, this.stepWord);
  }

  syncSteps() {
    if (!this.slider) return;
    this.slider.value = String(this.column);
    this.stepWord.textContent = this.run.stepsIn(this.column).replace(/^steps? /, "");
    this.slider.setAttribute("aria-valuetext", this.run.stepsIn(this.column));
  }

  foot() {
    const { data } = this;
    return h("footer", { class: "gw-foot", text: `GradWatch ${data.tool}${data.redacted ? "; paths, host names and settings are left out" : ""}` });
  }

  destroy() {
    this.dark?.removeEventListener("change", this.onDark);
    this.view?.destroy();
    this.root.remove();
  }
}

/**
 * Show a model in an element.
 *
 * @param {HTMLElement} element Is emptied and filled.
 * @param {object} model What page_model gave.
 * @param {object} options
 *   theme: "light", "dark" or "" (as the system has it);
 *   place: where to begin, as `place()` gave it: a string such as "#view=layer&row=net.0";
 *   onNavigate(place): called when the user goes somewhere, with the new place.
 * @returns {{update(model): void, navigate(place): void, place(): string, setTheme(theme): void, destroy(): void}}
 *   update shows a newer model without losing the place.
 */
export function mount(element, model, options = {}) {
  const page = new Page(element, model, options);
  return {
    update: (newer) => page.update(newer),
    navigate: (place) => page.navigate(place),
    place: () => writePlace(page.place),
    setTheme: (theme) => page.setTheme(theme),
    destroy: () => page.destroy(),
  };
}
