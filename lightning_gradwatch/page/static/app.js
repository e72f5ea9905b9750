// The page: mounted in an element by each host, from the same model.

/**
 * Show a model in an element.
 *
 * @param {HTMLElement} element Is emptied and filled.
 * @param {object} model What page_model gave.
 * @param {object} options
 *   theme: "light", "dark" or "" (as the system has it);
 *   place: where to begin, as `place()` gave it: a string such as "#run=0&view=layer&layer=net.0";
 *   onNavigate(place): called when the user goes somewhere, with the new place.
 * @returns {{update(model): void, navigate(place): void, place(): string, setTheme(theme): void, destroy(): void}}
 *   update shows a newer model without losing the place.
 */
export function mount(element, model, options = {}) {
  const show = (given) => {
    element.textContent = given.runs.map((run) => `${run.name}: ${run.verdict}`).join("\n");
  };
  show(model);
  return {
    update: show,
    navigate: () => {},
    place: () => options.place ?? "",
    setTheme: () => {},
    destroy: () => { element.textContent = ""; },
  };
}
