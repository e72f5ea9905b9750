// The signal over depth: the article's product, shrinking layer by layer. Pure: no document.

/** The row that lies on each place of a path, with what is drawn of it at a column. */
export function depthProfile(run, model, path, column) {
  const metrics = ["grad_norm", "signal_norm", "activation_gain", "weight_gain"].map((name) => model.metric(name));
  return path.map((site) => {
    const row = run.rowOfSite.get(site);
    const [gradient, signal, activation, weight] = metrics.map((metric) => (metric && row !== undefined ? run.value(metric, row, column) : NaN));
    return { row, site: run.sites[site], name: run.sites[site].name, gradient, signal, activation, weight };
  });
}

/** The signal as it would be from the last place on, were each to start as its function asks for. */
export function theoryLine(places) {
  const line = new Array(places.length).fill(NaN);
  let place = places.length - 1;
  while (place >= 0 && !(places[place].signal > 0)) place -= 1;
  if (place < 0) return line;
  line[place] = places[place].signal;
  for (let before = place - 1; before >= 0; before -= 1) {
    line[before] = line[before + 1] * (places[before].site.theory?.passes ?? NaN);
  }
  return line;
}

/**
 * What a path does to the signal as a whole.
 *
 * @returns {{attenuation, gain, layers, scale}|null} scale: layers over which it changes by e; Infinity where it stays level.
 */
export function depthScale(places) {
  const known = places.filter((place) => place.signal >= 0 && Number.isFinite(place.signal));
  if (known.length < 2) return null;
  const [first, last] = [known[0].signal, known[known.length - 1].signal];
  if (!(last > 0)) return null;
  const attenuation = first / last;
  const layers = known.length - 1;
  const gain = attenuation ** (1 / layers);
  const scale = attenuation > 0 ? Math.abs(1 / Math.log(gain)) : 0;
  return { attenuation, gain, layers, scale };
}
