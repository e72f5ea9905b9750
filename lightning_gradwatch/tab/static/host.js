// What TensorBoard around the tab says: when it reloads, whether it is dark, which runs are chosen and in which colours.
//
// Its messages have names that promise nothing over versions, and of the chosen runs and their colours it says nothing to a
// plugin: they are read off its page, which is of the same origin. Each of these may be missing, and the tab works without.

// TensorBoard's own colours of runs, in the order in which it names the runs: light, dark.
const PALETTE = [
  ["#425066", "#8e98a3"],
  ["#12b5cb", "#12b5cb"],
  ["#e52592", "#e52592"],
  ["#f9ab00", "#f9ab00"],
  ["#9334e6", "#9334e6"],
  ["#7cb342", "#7cb342"],
  ["#e8710a", "#e8710a"],
];
const PREFIX = "p.gradwatch.";
const MOST_ROWS = 5000;

/** Return TensorBoard's document; null where it can't be looked at. */
function outer() {
  try {
    return window.parent === window ? null : window.parent.document;
  } catch {
    return null;
  }
}

/** Call a function when TensorBoard has reloaded its data. */
export function onReload(reloaded) {
  if (window.parent === window) return;
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = (event) => {
    const message = parsed(event.data);
    if (message === null || message.isReply) return;
    port1.postMessage(JSON.stringify({ type: message.type, id: message.id, payload: null, error: null, isReply: true }));
    if (message.type === "experimental.DataReloaded") reloaded();
  };
  window.parent.postMessage("experimental.bootstrap", window.location.origin, [port2]);
}

function parsed(data) {
  try {
    const message = JSON.parse(data);
    return message !== null && typeof message === "object" ? message : null;
  } catch {
    return null;
  }
}

/** Return "dark" or "light" as TensorBoard is; "" where that can't be seen. */
export function theme() {
  const body = outer()?.body;
  if (!body) return "";
  return body.classList.contains("dark-mode") ? "dark" : "light";
}

/** Call a function when TensorBoard may have turned dark or light. */
export function onTheme(changed) {
  const body = outer()?.body;
  if (body) new MutationObserver(changed).observe(body, { attributes: true, attributeFilter: ["class"] });
}

/**
 * Return what TensorBoard's table of runs has, by name: whether a run is ticked, and its colour.
 *
 * @returns {Map<string, {chosen: boolean, colour: string}>} Empty where the table isn't there, as before its page was looked at.
 */
export function shownRuns() {
  const found = new Map();
  const rows = outer()?.querySelectorAll("runs-data-table tb-data-table-content-row[data-id]") ?? [];
  for (const row of [...rows].slice(0, MOST_ROWS)) {
    const id = row.getAttribute("data-id");
    const box = row.querySelector('input[type="checkbox"]');
    if (!id.includes("/") || box === null) continue;
    const swatch = row.querySelector(".run-color-swatch");
    const colour = swatch === null ? "" : hex(row.ownerDocument.defaultView.getComputedStyle(swatch).backgroundColor);
    found.set(id.slice(id.indexOf("/") + 1), { chosen: box.checked, colour });
  }
  return found;
}

/** Return a colour such as "rgb(66, 80, 102)" as "#425066"; "" where it is something else. */
export function hex(colour) {
  const parts = /^rgb\((\d+), (\d+), (\d+)\)$/.exec(colour);
  return parts === null ? "" : `#${parts.slice(1).map((part) => Number(part).toString(16).padStart(2, "0")).join("")}`;
}

/**
 * Return the colour that TensorBoard gives a run by itself.
 *
 * @param {number} place Of the run among all of TensorBoard's, -1 where it isn't known.
 */
export function ownColour(place, isDark) {
  return place < 0 ? "" : PALETTE[place % PALETTE.length][isDark ? 1 : 0];
}

/** Return the address of TensorBoard's page with something to say to this tab; "" where it can't be known. */
export function addressWith(data) {
  const view = outer()?.defaultView;
  if (!view) return "";
  const said = Object.entries(data).map(([name, value]) => `&${PREFIX}${name}=${encodeURIComponent(value)}`);
  return `${view.location.origin}${view.location.pathname}#gradwatch${said.join("")}`;
}

/** Return what the address of TensorBoard's page says to this tab: its own message for that gives nothing away any more. */
export function saidInAddress() {
  const given = new URLSearchParams((outer()?.defaultView.location.hash ?? "").slice(1));
  return Object.fromEntries([...given].filter(([name]) => name.startsWith(PREFIX)).map(([name, value]) => [name.slice(PREFIX.length), value]));
}

/** Call a function when the address of TensorBoard's page changes. */
export function onAddress(changed) {
  outer()?.defaultView.addEventListener("hashchange", changed);
}
