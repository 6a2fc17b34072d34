/** The page's entry: theme, then the application. */
import { html, render } from "./vendor/htm-preact.js";
import { App } from "./app.js";
import { applyTheme } from "./theme.js";

if (location.hash.startsWith("#token=")) history.replaceState(null, "", "/"); // a cookie is here already
applyTheme();
render(html`<${App} />`, document.getElementById("page"));
