// A metric as a table for other programs. Pure: no document.

/** One cell: quoted where it must be; a spreadsheet takes what begins with =, +, - or @ for a formula, which a name isn't. */
export function cell(value) {
  if (typeof value === "number") return Number.isNaN(value) ? "" : String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** A metric of a run: a row a layer or site, a column a step. */
export function metricCsv(run, metric) {
  const head = [metric.of === "layers" ? "layer" : "activation", ...run.steps.last.map(String)];
  const lines = [head.join(",")];
  for (let row = 0; row < run.rows.length; row += 1) {
    const curve = run.curve(metric, row);
    const thing = metric.of === "layers" ? run.layer(row) : run.site(row);
    if (curve && thing) lines.push([cell(thing.name), ...Array.from(curve, cell)].join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}
