// Building elements. Text is only ever set as text, so no name can become markup.

/**
 * Make an element.
 *
 * @param {string} tag
 * @param {object} properties class, text, on<event> listeners, dataset, and attributes by their names.
 * @param {...(Node|string|null|false)} children
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A name of the user's: isolated, so that what is written from right to left moves nothing beside it. */
export function named(text, properties = {}) {
  return h("bdi", { ...properties, text });
}

/** Hand the user a file. */
export function save(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** A name that any file system takes. */
export function fileName(...parts) {
  return parts.join("-").replace(/[^\w.-]+/g, "_").slice(0, 80);
}

/** Make a canvas ready to be drawn on in CSS pixels, whatever the screen's. */
export function prepared(canvas, width, height) {
  const ratio = Math.min(globalThis.devicePixelRatio || 1, 3);
  const [wide, high] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.direction = "ltr";
  return { pen, ratio };
}

/** Write text that is cut to a width, the names in it isolated. */
export function write(pen, text, x, y, width, align = "left") {
  let shown = text;
  if (pen.measureText(shown).width > width) {
    const signs = [...text];
    let [low, high] = [0, signs.length];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (pen.measureText(elided(signs, middle)).width <= width) low = middle;
      else high = middle - 1;
    }
    shown = low ? elided(signs, low) : "";
  }
  pen.textAlign = align;
  // First-strong isolate and its end: a canvas has no <bdi>.
  pen.fillText(/[^\u0000-\u04ff]/.test(shown) ? `\u2068${shown}\u2069` : shown, x, y);
}

function elided(signs, kept) {
  const head = Math.floor(kept / 2);
  return `${signs.slice(0, head).join("")}…${head < kept ? signs.slice(head - kept).join("") : ""}`;
}
