/** The light or dark theme, and the tokens of page.css as colours for a canvas. */
import { keep, kept } from "./storage.js";

const KEY = "tracepaper.theme";
const listeners = new Set();
const system = matchMedia("(prefers-color-scheme: dark)");

function show(choice) {
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
  tokens = null;
  for (const hear of listeners) hear();
}

/** Apply the chosen theme, by default the system's. */
export const applyTheme = () => show(kept(KEY));

/** Switch to the other theme. */
export function toggleTheme() {
  const now = document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
  const theme = now === "dark" ? "light" : "dark";
  keep(KEY, theme);
  show(theme);
}

export function onTheme(hear) {
  listeners.add(hear);
  return () => listeners.delete(hear);
}

system.addEventListener("change", applyTheme);

let tokens = null;

/** The tokens as colours: paper, ink, muted, rule, accent, loss, up, down, grid … */
export function colours() {
  if (tokens) return tokens;
  const style = getComputedStyle(document.documentElement);
  tokens = { font: getComputedStyle(document.body).fontFamily };
  for (const name of ["paper", "raised", "ink", "muted", "faint", "rule", "accent", "loss", "up", "down", "grid", "shadow-1", "shadow-2", "shadow-3"])
    tokens[name] = style.getPropertyValue(`--${name}`).trim();
  return tokens;
}
