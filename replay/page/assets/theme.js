/** Light and dark, and the tokens of page.css as colours for a canvas. */

const KEY = "tracepaper.theme";
const listeners = new Set();
const system = matchMedia("(prefers-color-scheme: dark)");

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** Set the theme that was chosen; without a choice the system's holds. */
export function applyTheme() {
  const choice = stored();
  if (choice) document.documentElement.dataset.theme = choice;
  else delete document.documentElement.dataset.theme;
  tokens = null;
  for (const told of listeners) told();
}

const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

/** The other theme, from now on. */
export function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // no storage: this page only
  }
  document.documentElement.dataset.theme = theme;
  tokens = null;
  for (const told of listeners) told();
}

export function onTheme(told) {
  listeners.add(told);
  return () => listeners.delete(told);
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
