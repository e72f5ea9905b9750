// The place on the page as text, for links. Pure: no document.

const VIEWS = ["overview", "depth", "layer", "compare"];

export const START = { view: "overview", run: 0, metric: "", step: null, row: "", finding: "" };

/** Read a place such as "#finding=GW101-0" or "#view=layer&run=1&row=net.3"; what isn't understood is left out. */
export function readPlace(text) {
  const given = new URLSearchParams((text ?? "").replace(/^#/, ""));
  const whole = (name) => (/^\d{1,9}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null);
  const view = given.get("view") ?? "";
  return {
    view: VIEWS.includes(view) ? view : START.view,
    run: whole("run") ?? 0,
    metric: given.get("metric") ?? "",
    step: whole("step"),
    row: given.get("row") ?? "",
    finding: given.get("finding") ?? "",
  };
}

/** Write a place; what is as at the start is left out. */
export function writePlace(place) {
  const told = new URLSearchParams();
  for (const name of ["view", "run", "metric", "step", "row", "finding"]) {
    const value = place[name];
    if (value !== undefined && value !== null && value !== "" && value !== START[name]) told.set(name, String(value));
  }
  const text = told.toString();
  return text ? `#${text}` : "";
}
