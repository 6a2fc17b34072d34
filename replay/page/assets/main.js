/** The page's entry: theme, then the application. */
import { html, render } from "./vendor/htm-preact.js";
import { App } from "./app.js";
import { applyTheme } from "./theme.js";

const isToken = location.hash.startsWith("#token=");
// Remove what a sign-in leaves in the address: a token, or the mark of its success.
if (isToken || location.search === "?in") history.replaceState(null, "", isToken ? "/" : `/${location.hash}`);
applyTheme();
render(html`<${App} />`, document.getElementById("page"));
