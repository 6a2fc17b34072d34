/** Entry of a file with one document, whose record is in the page. */
import { html, render } from "../vendor/htm-preact.js";
import { DocumentView } from "../document.js";
import { recorded } from "../record.js";
import { applyTheme, toggleTheme } from "../theme.js";

applyTheme();
const place = document.getElementById("page");
try {
  const record = await recorded(document.getElementById("record"));
  render(
    html`<main>
      <button type="button" class="theme" onClick=${toggleTheme}>light / dark</button>
      <${DocumentView} document=${record["/api/v1/document"]} />
    </main>`,
    place,
  );
} catch (error) {
  place.textContent = `This browser cannot show the page (${error}); use one from 2023 or later.`;
}
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details.fold")) fold.open = true;
});
