// Two runs beside each other, row by row. Pure: no document.

const FACTOR = 3;
const DIFFERENCE = 0.1;

/** Pairs of rows: of the same name; where both runs have as many rows, those that are left by their place. */
export function pairRows(base, run) {
  const pairs = [];
  const taken = new Set();
  for (let row = 0; row < run.rows.length; row += 1) {
    let other = base.rowNamed(run.nameOf(row));
    if (other < 0 && run.site(row)) other = base.rowNamed(run.site(row).name);
    if (other >= 0 && !taken.has(other)) {
      taken.add(other);
      pairs.push([other, row]);
    } else pairs.push([-1, row]);
  }
  if (base.rows.length === run.rows.length) {
    for (const pair of pairs) {
      if (pair[0] < 0 && !taken.has(pair[1])) {
        taken.add(pair[1]);
        pair[0] = pair[1];
      }
    }
  }
  return pairs;
}

/** The median of what was measured; NaN where nothing was. */
export function median(values) {
  const known = Array.from(values ?? []).filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  if (!known.length) return NaN;
  const middle = known.length >> 1;
  return known.length % 2 ? known[middle] : (known[middle - 1] + known[middle]) / 2;
}

/** How far a value is from the base's: decades on a log scale, else the difference; infinite where one of them is 0 or not finite. */
export function difference(metric, base, run) {
  if (Number.isNaN(base) || Number.isNaN(run)) return NaN;
  if (!metric.log) return run - base;
  if (base === run) return 0;
  if (base === 0 || run === Infinity) return Infinity;
  if (run === 0 || base === Infinity) return -Infinity;
  return Math.log10(run) - Math.log10(base);
}

/** Whether that is more than two runs differ by that are as good as one. */
export function parts(metric, far) {
  return Math.abs(far) > (metric.log ? Math.log10(FACTOR) : DIFFERENCE);
}

/**
 * Compare a metric of two runs over the steps that both have.
 *
 * @returns {{rows: {base, run, row, other, far, parts}[], first: number}} first: the place in rows of the first that parts; -1: none.
 */
export function pairedDifference(base, run, metric) {
  const from = Math.max(base.steps.first[0] ?? 0, run.steps.first[0] ?? 0);
  const to = Math.min(base.steps.last.at(-1) ?? -1, run.steps.last.at(-1) ?? -1);
  const within = (each, row) => {
    const curve = row < 0 ? null : each.curve(metric, row);
    return curve ? curve.filter((_, column) => each.steps.last[column] >= from && each.steps.first[column] <= to) : [];
  };
  const rows = pairRows(base, run).map(([other, row]) => {
    const [before, now] = [median(within(base, other)), median(within(run, row))];
    const far = difference(metric, before, now);
    return { other, row, base: before, run: now, far, parts: parts(metric, far) };
  });
  return { rows, first: rows.findIndex((each) => each.parts) };
}
