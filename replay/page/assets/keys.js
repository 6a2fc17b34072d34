/** Keys: the list that `?` shows, the handler of keys, and dialogs. */
import { html, useLayoutEffect, useRef } from "./vendor/htm-preact.js";
import { useEvent } from "./hooks.js";

/** @type {{keys: string, words: string}[]} */
export const KEYS = [
  { keys: "← →", words: "decision before, after (Shift: ten)" },
  { keys: "n N", words: "refusal after, before" },
  { keys: "f F", words: "fill after, before" },
  { keys: "Home End", words: "first, newest decision" },
  { keys: "g", words: "marks of the next gate" },
  { keys: "a", words: "attention along the candles" },
  { keys: "v", words: "verify this decision" },
  { keys: "i I", words: "longer, shorter cells" },
  { keys: "s", words: "next symbol" },
  { keys: "− +", words: "zoom out, in" },
  { keys: "w", words: "the whole run" },
  { keys: "space", words: "play, pause" },
  { keys: "< >", words: "play slower, faster" },
  { keys: "c", words: "panes of confidence and the strategy's notes" },
  { keys: "t", words: "light, dark" },
  { keys: "u", words: "UTC, local time" },
  { keys: "Ctrl K", words: "go to" },
  { keys: "?", words: "these keys" },
  { keys: "Esc", words: "close, go back" },
];

/** Whether a key is typed into an input. */
const isTyped = (event) => event.target.matches?.("input, textarea, select, [contenteditable]");

/**
 * Handle keys while a view is mounted.
 * @param {Object<string, Function>} actions by `event.key`, with "Shift+" before arrows
 */
export function useKeys(actions) {
  useEvent(window, "keydown", (event) => {
    if (isTyped(event) || event.altKey || document.querySelector("dialog[open]")) return;
    const name = `${event.ctrlKey || event.metaKey ? "Ctrl+" : ""}${event.shiftKey && event.key.length > 1 ? "Shift+" : ""}${event.key}`;
    // Space must press a focused button.
    if (event.key === " " && event.target.matches?.("button, summary, a")) return;
    if (!actions[name]) return;
    event.preventDefault();
    actions[name]();
  });
}

/** A modal dialog, open while it is mounted. */
export function Dialog({ label, close, children, class: name = "" }) {
  const element = useRef();
  // In a layout effect, so that a key typed at once goes to the dialog.
  useLayoutEffect(() => {
    element.current.showModal();
  }, []);
  const outside = (event) => event.target === element.current && close();
  return html`<dialog ref=${element} class=${name} aria-label=${label} onClose=${close} onClick=${outside}>${children}</dialog>`;
}

export function KeyList({ close }) {
  return html`<${Dialog} label="Keys" close=${close} class="keys">
    <h2>Keys</h2>
    <dl>
      ${KEYS.map(({ keys, words }) => html`<div key=${keys}><dt>${keys.split(keys.startsWith("Ctrl") ? "\u0000" : " ").map((key) => html`<kbd>${key}</kbd>`)}</dt><dd>${words}</dd></div>`)}
    </dl>
    <p class="muted">Hovering shows, a click pins, leaving the chart returns to what is pinned.</p>
    <button class="plain" onClick=${close}>close</button>
  <//>`;
}
