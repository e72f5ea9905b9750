// The host in a notebook's cell: a frame without an address of its own, so that the place lives as long as the cell.
import { mount } from "./app.js";

const model = JSON.parse(document.getElementById("gradwatch-data").textContent);
const page = mount(document.getElementById("gradwatch"), model, { theme: "", place: "" });
document.addEventListener("click", (event) => {
  // The notebook's own address is this frame's base: a link within the page would lead there.
  const link = event.target.closest?.('a[href^="#"]');
  if (!link || event.defaultPrevented) return;
  event.preventDefault();
  page.navigate(link.getAttribute("href"));
});
