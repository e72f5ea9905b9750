// What the page's pure modules do, without a document. Run by test_modules.py.
import assert from "node:assert/strict";
import { test } from "node:test";

import { metricCsv } from "./csv.js";
import { readModel } from "./data.js";
import { depthProfile, depthScale, theoryLine } from "./depth.js";
import { commonBeginning, groupRows, shortened, stacked } from "./groups.js";
import { pairRows, pairedDifference } from "./pairs.js";
import { readPlace, writePlace } from "./route.js";
import { ABSENT, NON_FINITE, ZERO, beyond, cellCode, colour, labelled, number, percent, position, scaleOver, ticks, worseCode } from "./scales.js";
import { aboveZeroSince, stateOf, worstState } from "./states.js";

const packed = (...curves) => ({ encoding: "float64", data: Buffer.from(Float64Array.from(curves.flat()).buffer).toString("base64") });

function made(changes = {}) {
  const run = {
    name: "run", colour: "", failure: "", outcome: "ill", measured: 3,
    steps: { first: [0, 1, 10], last: [0, 9, 10] },
    layers: [{ name: "net.0", weight: true }, { name: "net.2", weight: true }],
    sites: [{ name: "net.1", function: "sigmoid", theory: { passes: 0.25 } }, { name: "net.3", function: "sigmoid", theory: { passes: 0.25 } }],
    rows: [[0, 0], [1, 1]], paths: [[0, 1]],
    series: { grad_norm: packed([1e-4, 0, Infinity], [1, 1, 1]), signal_norm: packed([0.25, 1e-3, NaN], [1, 1, 1]), dead_fraction: packed([0, 0.5, 0.5], [0, 0, 0]) },
    layer_state: Buffer.from([1, 3, 5, 1, 1, 1]).toString("base64"),
    scalars: [{ name: "loss", title: "loss", values: [1, "NaN", 2] }],
    lines: [{ code: "GW101", metric: "signal_norm", value: 3e-3, side: "below", of_last: true }],
    findings: [], unjudged: [], problems: [], coverage: [], settings: {}, ...changes,
  };
  return {
    version: 1, tool: "0", title: "t", redacted: false, severities: ["info", "warning", "error"], rules: {}, comparisons: [],
    metrics: [
      { name: "grad_norm", of: "layers", title: "gradient norm", log: true },
      { name: "signal_norm", of: "sites", title: "signal", log: true },
      { name: "dead_fraction", of: "sites", title: "dead units", log: false },
    ],
    states: { 0: "unmeasured", 1: "ok", 2: "none", 3: "zero", 4: "frozen", 5: "non finite" },
    runs: [run],
  };
}

const finding = (changes) => ({ id: "GW101-0", code: "GW101", words: "vanishing gradient", severity: "error", layers: ["net.0"], first_step: 1, last_step: 10, healed_step: null, consequence_of: "", ...changes });

test("numbers are short and never more than they are", () => {
  assert.deepEqual([0.0030000001, 2.3456e-26, 0, NaN, Infinity, 12345.6].map((value) => number(value)), ["0.003", "2.35e-26", "0", "–", "inf", "12300"]);
  assert.deepEqual([0.5, 0.9996, 1, 0.004, NaN].map(percent), ["50 %", "99.9 %", "100 %", "0.4 %", "–"]);
  assert.equal(number(1e-6), "1e-6");
});

test("a scale spans whole decades, without what is 0, absent or not finite", () => {
  assert.deepEqual(scaleOver([[1e-3, 0, NaN, Infinity, 50]], true), { log: true, low: -3, high: 2 });
  assert.deepEqual(scaleOver([[]], true), { log: true, low: -1, high: 0 });
  assert.equal(scaleOver([[0, 0.2]], false).high, 1);
  const scale = scaleOver([[1e-3, 1]], true);
  assert.equal(position(scale, 0), 0);
  assert.ok(Number.isNaN(position(scale, NaN)));
  assert.ok(ticks({ log: true, low: -300, high: 300 }, 5).length <= 7);
});

test("zero, not finite and not measured are no shades", () => {
  const scale = { log: true, low: -3, high: 0 };
  assert.deepEqual([0, Infinity, -Infinity, NaN].map((value) => cellCode(scale, value)), [ZERO, NON_FINITE, NON_FINITE, ABSENT]);
  assert.equal(cellCode({ log: false, low: 0, high: 1 }, 0), 0);
  assert.ok(cellCode(scale, 1e-9) < 256);
});

test("where cells share a pixel, what alarms is seen", () => {
  assert.equal(worseCode(ZERO, 12), ZERO);
  assert.equal(worseCode(12, NON_FINITE), NON_FINITE);
  assert.equal(worseCode(ABSENT, 12), 12);
  assert.equal(worseCode(12, ABSENT), 12);
  assert.equal(worseCode(ABSENT, ABSENT), ABSENT);
});

test("colours go from dark to bright", () => {
  const bright = ([red, green, blue]) => 0.3 * red + 0.59 * green + 0.11 * blue;
  const shades = Array.from({ length: 11 }, (_, place) => bright(colour(place / 10)));
  shades.slice(1).forEach((shade, place) => assert.ok(shade > shades[place]));
});

test("labels don't crowd, and the ends have one", () => {
  assert.deepEqual(labelled(3, 10), [0, 1, 2]);
  const places = labelled(37, 6);
  assert.equal(places[0], 0);
  assert.equal(places.at(-1), 36);
  assert.ok(places.length <= 7);
  assert.deepEqual(labelled(0, 3), []);
});

test("a line is beyond on its side, relative to the last where it says so", () => {
  const line = { side: "below", value: 1e-3, of_last: true };
  assert.equal(beyond(line, 1e-6, 1e-2), true);
  assert.equal(beyond(line, 1e-4, 1e-2), false);
  assert.equal(beyond(line, NaN, 1e-2), false);
  assert.equal(beyond({ side: "above", value: 0.9 }, 0.95), true);
});

test("rows are grouped by module, in pieces where one has too many", () => {
  const names = ["stem", ...[0, 1, 2].flatMap((block) => ["a", "b"].map((part) => `blocks.${block}.${part}`)), "head"];
  const groups = groupRows(names, 26);
  assert.deepEqual(groups.map((group) => [group.label, group.to - group.from]), [["stem", 1], ["blocks.0", 2], ["blocks.1", 2], ["blocks.2", 2], ["head", 1]]);
  for (const count of [3, 50, 2000]) {
    const flat = groupRows(Array.from({ length: count }, (_, place) => `net.${place}`), 26);
    assert.ok(flat.length <= 40, `${count}: ${flat.length}`);
    assert.equal(flat.reduce((sum, group) => sum + group.to - group.from, 0), count);
    assert.ok(flat.every((group, place) => place === 0 || group.from === flat[place - 1].to));
  }
  assert.deepEqual(groupRows([], 26), []);
});

test("what is unfolded shows each row below its head", () => {
  const groups = [{ label: "a", from: 0, to: 3 }, { label: "b", from: 3, to: 4 }];
  assert.deepEqual(stacked(groups, new Set(), 10, 20).map((line) => [line.kind, line.from, line.height]), [["group", 0, 30], ["row", 3, 20]]);
  const lines = stacked(groups, new Set([0]), 10, 20);
  assert.deepEqual(lines.map((line) => line.kind), ["group", "row", "row", "row", "row"]);
  assert.deepEqual(lines.map((line) => line.top), [0, 20, 40, 60, 80]);
});

test("names are shortened in their middle, by signs and not by halves of them", () => {
  assert.equal(shortened("net.0", 10), "net.0");
  assert.equal([...shortened("🙂".repeat(500), 11)].length, 11);
  assert.equal(commonBeginning(["net.10.a", "net.11.b"]), "net.");
  assert.equal(commonBeginning(["net.0"]), "");
});

test("numbers come back as they were packed", () => {
  const data = readModel(made());
  const [grad] = data.metrics;
  const [run] = data.runs;
  assert.deepEqual([0, 1, 2].map((column) => run.value(grad, 0, column)), [1e-4, 0, Infinity]);
  assert.ok(Number.isNaN(run.value(data.metrics[1], 0, 2)));
  assert.ok(Number.isNaN(run.scalars[0].values[1]));
  assert.deepEqual([0, 5, 9, 10, 99].map((step) => run.columnOf(step)), [0, 1, 1, 2, 2]);
  assert.equal(run.stepsIn(1), "steps 1 to 9");
  assert.equal(run.rowNamed("net.3"), 1);
  assert.equal(run.rowNamed("gone"), -1);
});

test("a model of another version is refused in words", () => {
  assert.throws(() => readModel({ version: 99, runs: [] }), /version 99/);
  assert.throws(() => readModel(null), /version/);
});

test("a row's word is the finding's, else its state's", () => {
  const found = readModel(made({ findings: [finding()] })).runs[0];
  assert.deepEqual([stateOf(found, 0, 0).word, stateOf(found, 1, 0).word], ["vanishing gradient", "ok"]);
  const [run] = readModel(made()).runs;
  assert.deepEqual([0, 1, 2].map((column) => stateOf(run, 0, column).word), ["ok", "zero gradient", "not finite"]);
  const healed = readModel(made({ findings: [finding({ healed_step: 10 })] })).runs[0];
  assert.deepEqual([stateOf(healed, 0, 0).word, stateOf(healed, 0, 0).level], ["healed: vanishing gradient", "info"]);
  assert.equal(worstState(found, 0, 2, 0).count, 1);
});

test("a state that a later release adds has its own word", () => {
  const model = made();
  model.states[3] = "asleep";
  assert.equal(stateOf(readModel(model).runs[0], 0, 1).word, "asleep");
});

test("units are dead since the last time that none was", () => {
  const [run] = readModel(made()).runs;
  assert.equal(aboveZeroSince([0, 0.5, 0.5], run), 1);
  assert.equal(aboveZeroSince([0.5, 0.5, 0], run), null);
});

test("the depth profile is the product of what each passes back", () => {
  const data = readModel(made());
  const places = depthProfile(data.runs[0], data, [0, 1], 0);
  assert.deepEqual(places.map((place) => place.signal), [0.25, 1]);
  assert.deepEqual(theoryLine(places), [0.25, 1]);
  const found = depthScale(places);
  assert.equal(found.attenuation, 0.25);
  assert.ok(Math.abs(found.scale - 1 / Math.log(4)) < 1e-12);
  assert.equal(depthScale(depthProfile(data.runs[0], data, [0, 1], 2)), null);
});

test("two runs are paired by name, else by place, and the first that parts is told", () => {
  const other = made({ layers: [{ name: "x.0" }, { name: "net.2" }], sites: [], rows: [[0, -1], [1, -1]], paths: [], series: { grad_norm: packed([1, 1, 1], [1, 1, 1]) } }).runs[0];
  const model = made();
  const data = readModel({ ...model, runs: [model.runs[0], other] });
  assert.deepEqual(pairRows(data.runs[0], data.runs[1]), [[0, 0], [1, 1]]);
  const { rows, first } = pairedDifference(data.runs[0], data.runs[1], data.metrics[0]);
  assert.equal(first, 0);
  assert.equal(rows[1].parts, false);
  assert.ok(Math.abs(rows[0].far - 4) < 1e-9);
});

test("a place is written as short as it can be, and read whatever it is", () => {
  const place = { view: "layer", run: 1, metric: "", step: 40, row: "net.<b>&=#", finding: "" };
  assert.deepEqual(readPlace(writePlace(place)), place);
  assert.equal(writePlace(readPlace("")), "");
  assert.equal(readPlace("#finding=GW101-0").finding, "GW101-0");
  for (const odd of ["#view=evil&run=-1&step=1e9", "#%%%", "#run=99999999999999", null]) {
    const read = readPlace(odd);
    assert.equal(read.view, "overview");
    assert.equal(read.run, 0);
  }
});

test("a table for spreadsheets holds no formula and loses no number", () => {
  const model = made({ layers: [{ name: '=cmd|"x",1' }, { name: "net.2" }] });
  const data = readModel(model);
  const text = metricCsv(data.runs[0], data.metrics[0]);
  assert.deepEqual(text.split("\r\n"), ["layer,0,9,10", `"'=cmd|""x"",1",0.0001,0,Infinity`, "net.2,1,1,1", ""]);
});
