// Signal and gradient over depth at a step, what takes them, and theory's line beside them.
import { Chart } from "../chart.js";
import { depthProfile, depthScale, theoryLine } from "../depth.js";
import { fileName, h, save } from "../dom.js";
import { number } from "../scales.js";

/** What a path does to the signal, in a sentence. */
export function depthSentence(found) {
  if (!found) return "No signal was measured along this path at this step.";
  const { attenuation, gain, layers, scale } = found;
  if (attenuation === 0) return `From the last activation to the first, over ${layers} steps, nothing is left of the signal.`;
  const way = gain < 1 ? "A tenth of it is left after" : "It grows tenfold over";
  const length = Number.isFinite(scale) && scale < 1000 ? ` ${way} ${number(scale * Math.LN10, 2)} layers.` : "";
  return `From the last activation to the first, over ${layers} layers, ${number(attenuation)} of the signal is left: a factor of ${number(gain)} per layer.${length}`;
}

/** The profile of the run that is shown; of further runs the signal beside it. */
export class DepthView {
  constructor(ctx) {
    const { run, data, column } = ctx;
    const path = run.paths[ctx.path] ?? run.paths[0];
    this.charts = [];
    if (!path || !run.columns) {
      this.element = h("section", { class: "gw-panel" }, h("p", { class: "gw-empty", text: "There is no path of two or more activations to show a depth profile of." }));
      return;
    }
    const places = depthProfile(run, data, path, column);
    const colours = ctx.colours();
    const list = (name) => Float64Array.from(places, (place) => place[name]);
    const step = run.steps.last[column];
    const others = data.runs.filter((other) => other !== run && other.paths[0]?.length === path.length && other.columns);
    const chart = new Chart({
      title: `Signal and gradient over depth at step ${step}`,
      description: depthSentence(depthScale(places)),
      height: 470,
      log: true,
      labels: places.map((place) => place.name),
      xTitle: "",
      curves: [
        { label: "signal", values: list("signal"), colour: colours.signal, wide: 2.5 },
        { label: "gradient norm", values: list("gradient"), colour: colours.gradient },
        { label: "signal by theory", values: Float64Array.from(theoryLine(places)), colour: colours.fg, dash: [7, 5], wide: 1.3 },
        ...others.slice(0, 3).map((other) => ({
          label: `signal of ${other.name}`, colour: ctx.runColour(other), dash: [2, 3],
          values: Float64Array.from(depthProfile(other, data, other.paths[0], other.columnOf(step)), (place) => place.signal),
        })),
      ],
      bars: [
        { label: "activations pass back", values: list("activation"), colour: colours.activation },
        { label: "weights pass back", values: list("weight"), colour: colours.weight },
      ],
      colours: () => ctx.colours(),
      onPick: (place) => ctx.openLayer(places[place].row),
      zoom: ctx.zooms.depth?.to === path.length - 1 ? ctx.zooms.depth : (ctx.zooms.depth = { from: 0, to: path.length - 1 }),
    });
    this.charts.push(chart);
    this.element = h(
      "section",
      { class: "gw-panel", "aria-label": "Depth profile" },
      h("p", { class: "gw-lead", text: depthSentence(depthScale(places)) }),
      h("p", { class: "gw-note", text: "Input on the left, loss on the right: the signal comes back from right to left. Theory: each activation passes back what it does in a net that starts as it asks for." }),
      run.paths.length > 1 ? this.pathChoice(ctx) : null,
      chart.element,
      h("div", { class: "gw-under" },
        h("p", { class: "gw-keys", text: "Drag to zoom, double-click to see all, click an activation for its page." }),
        h("button", { type: "button", text: "PNG", title: "Save as a picture", onclick: () => chart.canvas.toBlob((blob) => save(`${fileName("gradwatch", run.name, "depth", String(step))}.png`, blob), "image/png") }),
      ),
      table(places),
    );
  }

  pathChoice(ctx) {
    const select = h("select", { "aria-label": "Path", onchange: (event) => ctx.choosePath(Number(event.target.value)) });
    ctx.run.paths.forEach((path, place) => {
      const ends = [path[0], path[path.length - 1]].map((site) => ctx.run.sites[site].name);
      select.append(h("option", { value: String(place), selected: place === ctx.path, text: `${ends[0]} to ${ends[1]}, ${path.length} activations` }));
    });
    return h("label", { class: "gw-path" }, "Path ", select);
  }

  destroy() {
    this.charts.forEach((chart) => chart.destroy());
  }

  refresh() {
    this.charts.forEach((chart) => chart.later());
  }
}

function table(places) {
  const heads = ["activation", "function", "signal", "gradient norm", "activation passes back", "weights pass back"];
  const body = h("div", { class: "gw-table-holder" });
  const details = h("details", { class: "gw-as-table" }, h("summary", { text: "The same as a table" }), body);
  details.addEventListener("toggle", () => {
    if (!details.open || body.firstChild) return;
    body.append(h(
      "table", {},
      h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col", text })))),
      h("tbody", {}, ...places.map((place) => h(
        "tr", {},
        h("th", { scope: "row" }, h("bdi", { text: place.name })),
        h("td", { text: place.site.function }),
        ...[place.signal, place.gradient, place.activation, place.weight].map((value) => h("td", { text: number(value) })),
      ))),
    ));
  });
  return details;
}
