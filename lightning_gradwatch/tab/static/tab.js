// The tab: chooses runs, fetches their model and hands it to the page. TensorBoard calls `render`.
import { addressWith, onAddress, onReload, onTheme, ownColour, saidInAddress, shownRuns, theme } from "./host.js";

const KEPT = "gradwatch.tab";

/** Build the tab; whatever goes wrong in it is said in it. */
export async function render() {
  const tab = new Tab();
  await tab.guarded(() => tab.start());
}

class Tab {
  constructor() {
    this.parts = layOut();
    this.page = null;
    this.listed = []; // {name, shown, version}
    this.order = []; // all of TensorBoard's runs, as their colours go
    this.most = 1;
    this.chosen = new Set();
    this.hostChoice = new Map();
    this.place = "";
    this.drawn = "";
    this.names = [];
    this.due = false;
    this.asked = 0;
  }

  /** Run something and say in the tab what went wrong in it. */
  async guarded(action) {
    try {
      await action();
    } catch (error) {
      this.say(`This tab can't be brought up to date: ${error.message}`, "alert");
    }
  }

  say(text, role = "status") {
    this.parts.notice.setAttribute("role", role);
    this.parts.notice.textContent = text;
    this.parts.notice.hidden = text === "";
  }

  async start() {
    document.documentElement.lang = "en";
    document.body.append(this.parts.bar, this.parts.notice, this.parts.page);
    this.say("Reading the runs …");
    await Promise.all(["./page/page.css", "./tab.css"].map(styled));
    onReload(() => this.reload());
    const linked = saidInAddress();
    const kept = remembered();
    this.place = linked.place ?? kept.place ?? "";
    const named = namesIn(linked.runs) ?? kept.runs;
    ({ mount: this.mount } = await import("./page/app.js"));
    onTheme(() => this.showTheme());
    // A tab that isn't shown has no height: what came meanwhile is drawn when it has one again.
    window.addEventListener("resize", () => isShown() && this.guarded(() => this.wake()));
    this.parts.page.addEventListener("click", (event) => this.follow(event));
    onAddress(() => this.page?.navigate(saidInAddress().place ?? this.place));
    await this.list();
    this.choose(named);
    this.showTheme();
    await this.draw();
  }

  reload() {
    this.due = true;
    if (isShown()) this.guarded(() => this.wake());
  }

  async wake() {
    if (!this.mount) return;
    const isNews = this.takeHostChoice();
    if (this.due) {
      this.due = false;
      await this.list();
      if (this.chosen.size === 0) this.choose(null);
    } else if (!isNews) {
      return;
    }
    await this.draw();
  }

  /** Ask which runs there are. */
  async list() {
    const [own, all] = await Promise.all([fetched("./runs"), fetched("../../runs").catch(() => [])]);
    this.listed = own.runs;
    this.most = own.most;
    this.order = Array.isArray(all) ? all : [];
    const names = new Set(this.listed.map((run) => run.name));
    this.chosen = new Set([...this.chosen].filter((name) => names.has(name)));
  }

  /** Choose the runs that are named, else those that TensorBoard has ticked, else the first ones. */
  choose(named) {
    this.takeHostChoice();
    const ticked = (name) => this.hostChoice.get(name) ?? true;
    const wanted = named?.length ? (name) => named.includes(name) : ticked;
    let names = this.listed.map((run) => run.name).filter(wanted);
    if (names.length === 0) names = this.listed.map((run) => run.name);
    this.chosen = new Set(names.slice(0, this.most));
  }

  /** Take over what was ticked or unticked in TensorBoard since the last look; return whether anything was. */
  takeHostChoice() {
    const seen = shownRuns();
    // Before its table was looked at all are taken to be ticked; of very many runs TensorBoard ticks none itself.
    const begins = this.hostChoice.size === 0 && ![...seen.values()].some((run) => run.chosen);
    let isNews = false;
    for (const [name, { chosen }] of seen) {
      const before = this.hostChoice.get(name) ?? true;
      this.hostChoice.set(name, chosen);
      if (begins || before === chosen || !this.listed.some((run) => run.name === name)) continue;
      isNews = true;
      if (!chosen) this.chosen.delete(name);
      else if (this.chosen.size < this.most) this.chosen.add(name);
    }
    return isNews;
  }

  colourOf(name, seen = shownRuns()) {
    return seen.get(name)?.colour || ownColour(this.order.indexOf(name), theme() === "dark");
  }

  /** Fetch the model of the chosen runs and show it, at the place that was looked at. */
  async draw() {
    this.listRuns();
    this.remember();
    const runs = this.listed.filter((run) => this.chosen.has(run.name));
    if (runs.length === 0) {
      this.empty();
      return;
    }
    const names = runs.map((run) => run.name);
    const seen = shownRuns();
    const query = runs.map((run) => `run=${encodeURIComponent(run.name)}&colour=${encodeURIComponent(this.colourOf(run.name, seen))}`);
    const wanted = `${query.join("&")} ${runs.map((run) => run.version).join(" ")}`;
    if (wanted === this.drawn) return;
    const turn = ++this.asked;
    if (this.page === null) this.say("Reading the runs …");
    const model = await fetched(`./model?${query.join("&")}`);
    if (turn !== this.asked) return; // a later choice is on its way
    this.drawn = wanted;
    this.say(model.said.join("\n"));
    if (this.page === null) {
      const { page } = this.parts;
      const failing = model.runs.findIndex((run) => run.outcome === "ill");
      if (this.place === "" && failing > 0) this.place = `#run=${failing}`;
      const options = { theme: theme(), place: this.place, onNavigate: (place) => this.went(place) };
      this.page = this.mount(page, model, options);
    } else {
      this.keepRun(names);
      this.page.update(model);
      this.page.navigate(this.place);
    }
    this.names = names;
    this.went(this.page.place());
  }

  /** Keep looking at the same run where others have come or gone: a place has its number among those that are shown. */
  keepRun(names) {
    const place = new URLSearchParams(this.page.place().replace(/^#/, ""));
    const now = names.indexOf(this.names[Number(place.get("run") ?? 0)]);
    if (now > 0) place.set("run", String(now));
    else place.delete("run");
    this.place = `#${place}`;
  }

  empty() {
    this.page?.destroy();
    this.page = null;
    this.drawn = "";
    this.asked += 1;
    this.say(
      this.listed.length === 0
        ? "None of the runs here has a step that GradWatch measured. Add GradWatch() to the Trainer's callbacks; a run shows here as soon as TensorBoard has reloaded its first measured step."
        : "No run is chosen: tick one above.",
    );
  }

  went(place) {
    this.place = place;
    this.remember();
    const address = addressWith({ place, runs: JSON.stringify([...this.chosen]) });
    this.parts.link.hidden = address === "";
    this.parts.link.href = address;
  }

  remember() {
    try {
      sessionStorage.setItem(KEPT, JSON.stringify({ place: this.place, runs: [...this.chosen] }));
    } catch {
      // a browser that keeps nothing: the place lives as long as the tab
    }
  }

  /** Go where a link within the page leads: TensorBoard's base address would take it to another document. */
  follow(event) {
    const link = event.target.closest?.('a[href^="#"]');
    if (!link || event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    this.page?.navigate(link.getAttribute("href"));
  }

  showTheme() {
    const name = theme();
    document.documentElement.dataset.theme = name;
    this.page?.setTheme(name);
    this.listRuns();
  }

  /** Draw the row of runs to choose from. */
  listRuns() {
    const seen = shownRuns();
    const focused = document.activeElement?.dataset?.run;
    this.parts.runs.replaceChildren(...this.listed.map((run) => this.choice(run, this.colourOf(run.name, seen))));
    if (focused !== undefined) [...this.parts.runs.querySelectorAll("input")].find((box) => box.dataset.run === focused)?.focus();
    this.parts.bar.hidden = this.listed.length === 0;
  }

  choice(run, colour) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    const swatch = document.createElement("span");
    const name = document.createElement("bdi");
    box.type = "checkbox";
    box.dataset.run = run.name;
    box.checked = this.chosen.has(run.name);
    box.disabled = !box.checked && this.chosen.size >= this.most;
    box.addEventListener("change", () => {
      if (box.checked) this.chosen.add(run.name);
      else this.chosen.delete(run.name);
      this.guarded(() => this.draw());
    });
    swatch.className = "swatch";
    swatch.style.background = colour;
    name.textContent = run.shown;
    label.title = run.shown;
    label.append(box, swatch, name);
    return label;
  }
}

function layOut() {
  const bar = document.createElement("header");
  const runs = document.createElement("div");
  const link = document.createElement("a");
  const notice = document.createElement("p");
  const page = document.createElement("main");
  bar.className = "gw-tab-bar";
  bar.hidden = true;
  runs.className = "runs";
  runs.setAttribute("role", "group");
  runs.setAttribute("aria-label", "Runs");
  link.textContent = "Link to this view";
  link.target = "_top";
  link.hidden = true;
  notice.className = "gw-tab-notice";
  bar.append(runs, link);
  return { bar, runs, link, notice, page };
}

/** Return the JSON at an address below the plugin's own. */
async function fetched(address) {
  const response = await fetch(address, { credentials: "same-origin" });
  const type = response.headers.get("Content-Type") ?? "";
  const data = type.startsWith("application/json") ? await response.json() : null;
  if (!response.ok || data === null) throw new Error(data?.refused ?? `TensorBoard answered ${response.status}`);
  return data;
}

function styled(address) {
  return new Promise((resolve) => {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = address;
    link.onload = link.onerror = resolve;
    document.head.append(link);
  });
}

function isShown() {
  return window.innerHeight > 0;
}

function remembered() {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
    return { place: typeof kept.place === "string" ? kept.place : "", runs: Array.isArray(kept.runs) ? kept.runs : null };
  } catch {
    return {};
  }
}

function namesIn(text) {
  try {
    const names = JSON.parse(text ?? "null");
    return Array.isArray(names) ? names : null;
  } catch {
    return null;
  }
}
