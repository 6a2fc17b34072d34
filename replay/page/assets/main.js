/** The page's entry: theme, then the application. */
import { html, render } from "./vendor/htm-preact.js";
import { App } from "./app.js";
import { applyTheme } from "./theme.js";

applyTheme();
render(html`<${App} />`, document.getElementById("page"));
