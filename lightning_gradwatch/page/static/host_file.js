// The file's host: the model stands in the document, the place in the address.
import { mount } from "./app.js";

const model = JSON.parse(document.getElementById("gradwatch-data").textContent);
const page = mount(document.getElementById("gradwatch"), model, {
  theme: "",
  place: location.hash,
  onNavigate: (place) => {
    if (place !== location.hash) history.pushState(null, "", place || "#");
  },
});
window.addEventListener("popstate", () => page.navigate(location.hash));
window.addEventListener("hashchange", () => page.navigate(location.hash));
