// Rows grouped by module, so that 3 and 2,000 of them are readable. Pure: no document.

/** The first parts of a dotted name. */
function beginning(name, parts) {
  return name.split(".").slice(0, parts).join(".");
}

function runsOf(names, parts) {
  const groups = [];
  names.forEach((name, row) => {
    const label = beginning(name, parts);
    const last = groups[groups.length - 1];
    if (last && last.label === label) last.to = row + 1;
    else groups.push({ label, from: row, to: row + 1 });
  });
  return groups;
}

/** Part a group with more rows than wanted in pieces of about the same size. */
function parted(group, most, names) {
  const count = group.to - group.from;
  if (count <= most) return [group];
  const pieces = Math.ceil(count / most);
  const whole = commonBeginning(names);
  const own = commonBeginning(names.slice(group.from, group.to));
  const without = (name, beginning, most) => (beginning.length > most ? name.slice(beginning.length) : name);
  return Array.from({ length: pieces }, (_, piece) => {
    const from = group.from + Math.round((piece * count) / pieces);
    const to = group.from + Math.round(((piece + 1) * count) / pieces);
    return { label: `${without(names[from], whole, 6)} … ${without(names[to - 1], own, 4)}`, from, to };
  });
}

/**
 * Group rows that follow each other by the modules that their names begin with.
 *
 * @param {string[]} names
 * @param {number} most Groups that are wanted at most.
 * @returns {{label: string, from: number, to: number}[]} Rows from, up to but not including to.
 */
export function groupRows(names, most) {
  if (!names.length) return [];
  const deepest = Math.max(...names.map((name) => name.split(".").length));
  let found = runsOf(names, 1);
  for (let parts = 2; parts <= Math.min(deepest, 12); parts += 1) {
    const finer = runsOf(names, parts);
    if (finer.length > most) break;
    if (finer.length < names.length) found = finer;
  }
  const size = Math.max(2, Math.ceil(names.length / most));
  return found.flatMap((group) => parted(group, Math.max(size, 10), names));
}

/**
 * What is shown one below the other.
 *
 * @param {{label, from, to}[]} groups
 * @param {Set<number>} open Groups, by their first rows, that show each row.
 * @param {number} perRow Pixels a row of a group that is folded.
 * @param {number} least Pixels that a line with text needs.
 * @returns {{kind: "group"|"row", top, height, from, to, label, open}[]}
 */
export function stacked(groups, open, perRow, least) {
  const lines = [];
  let top = 0;
  const add = (line) => {
    lines.push({ ...line, top });
    top += line.height;
  };
  for (const group of groups) {
    const count = group.to - group.from;
    if (count === 1) {
      add({ kind: "row", from: group.from, to: group.to, height: Math.max(least, Math.min(perRow, 28)), label: "", inside: false });
      continue;
    }
    const unfolded = open.has(group.from);
    add({
      kind: "group", from: group.from, to: group.to, label: group.label, open: unfolded,
      height: unfolded ? least : Math.max(least, Math.round(count * perRow)),
    });
    for (let row = group.from; unfolded && row < group.to; row += 1) {
      add({ kind: "row", from: row, to: row + 1, height: least, label: "", inside: true });
    }
  }
  return lines;
}

/** What all names begin with, up to a dot. */
export function commonBeginning(names) {
  if (names.length < 2) return "";
  const [first, last] = [names.reduce((a, b) => (a < b ? a : b)), names.reduce((a, b) => (a > b ? a : b))];
  let same = 0;
  while (same < first.length && first[same] === last[same]) same += 1;
  return first.slice(0, first.lastIndexOf(".", same - 1) + 1).slice(0, same);
}

/** A name of at most so many signs: its ends tell more than its middle. */
export function shortened(name, most) {
  const signs = [...name];
  if (signs.length <= most) return name;
  const kept = Math.max(1, Math.floor((most - 1) / 2));
  return `${signs.slice(0, kept).join("")}…${signs.slice(-(most - 1 - kept)).join("")}`;
}
