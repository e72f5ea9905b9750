// A word for how a row is, legible in a second. Pure: no document.

const SILENT = new Set(["ok", "unmeasured", ""]);
const SAYS = {
  none: "no gradient",
  zero: "zero gradient",
  "non finite": "not finite",
  frozen: "frozen",
  unused: "not used",
};

/** Findings by the layers and sites that they name, the first to be said first. */
export function findingsByName(run) {
  if (!run.byName_) {
    run.byName_ = new Map();
    for (const finding of run.findings) {
      for (const name of finding.layers) {
        if (!run.byName_.has(name)) run.byName_.set(name, []);
        run.byName_.get(name).push(finding);
      }
    }
  }
  return run.byName_;
}

/** The findings about a row: its layer's and its site's. */
export function findingsOf(run, row) {
  const names = findingsByName(run);
  const found = new Set();
  for (const thing of [run.layer(row), run.site(row)]) {
    if (thing) for (const finding of names.get(thing.name) ?? []) found.add(finding);
  }
  return run.findings.filter((finding) => found.has(finding));
}

/**
 * Say how a row is at a column.
 *
 * @returns {{word: string, level: "error"|"warning"|"info"|"ok"|"none", finding: object|null}}
 */
export function stateOf(run, row, column) {
  const found = findingsOf(run, row);
  const told = found.find((finding) => finding.severity !== "info" && finding.healed_step === null);
  if (told) return { word: told.words, level: told.severity, finding: told };
  const state = run.layerState(row, column);
  if (!SILENT.has(state)) {
    return { word: SAYS[state] ?? state, level: state === "frozen" || state === "unused" ? "info" : "warning", finding: null };
  }
  const healed = found.find((finding) => finding.healed_step !== null);
  if (healed) return { word: `healed: ${healed.words}`, level: "info", finding: healed };
  if (found.length) return { word: found[0].words, level: "info", finding: found[0] };
  if (state === "unmeasured") return { word: "not measured", level: "none", finding: null };
  return { word: "ok", level: "ok", finding: null };
}

const ORDER = ["error", "warning", "info", "none", "ok"];

/** The worst state of some rows, and how many have it. */
export function worstState(run, from, to, column) {
  let worst = null;
  let count = 0;
  for (let row = from; row < to; row += 1) {
    const state = stateOf(run, row, column);
    const rank = ORDER.indexOf(state.level);
    if (worst === null || rank < ORDER.indexOf(worst.level)) [worst, count] = [state, 1];
    else if (state.word === worst.word) count += 1;
  }
  return { ...(worst ?? { word: "", level: "none", finding: null }), count };
}

/** The word for a run as a whole. */
export function outcomeWord(run) {
  return { ill: "not healthy", noted: "healthy, with a note", healthy: "healthy", unknown: "can't judge" }[run.outcome] ?? run.outcome;
}

/** Since when a share has been above 0 without a break: the first step of that, or null where it is 0 now. */
export function aboveZeroSince(curve, run) {
  let since = null;
  for (let column = curve.length - 1; column >= 0; column -= 1) {
    if (Number.isNaN(curve[column])) continue;
    if (!(curve[column] > 0)) break;
    since = run.steps.first[column];
  }
  return since;
}
