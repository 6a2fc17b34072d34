/** The Ctrl-K palette: runs, views, times, decisions, symbols, commands. */
import { html, useLayoutEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { moment, stamp } from "./format.js";
import { Dialog } from "./keys.js";

const SHOWN = 12;

/** Parse a typed time, `2025-06-03 09:33` or `09:33`, the last one at or before `near`. */
export function parseTime(text, near, isLocal) {
  const parts = /^(?:(\d{4})-(\d\d?)-(\d\d?)[ T])?(\d\d?):(\d\d)$/.exec(text.trim());
  if (!parts) return null;
  const [, year, month, day, hour, minute] = parts.map((part) => part?.padStart(2, "0"));
  const date = year ? `${year}-${month}-${day}` : stamp(near).slice(0, 10);
  const ms = Date.parse(`${date}T${hour}:${minute}${isLocal ? "" : "Z"}`);
  if (Number.isNaN(ms)) return null;
  return year || ms <= near ? ms : ms - 864e5;
}

/** The distance of a text from a search whose letters it has in order; less is better, null is no match. */
function fit(text, search) {
  let at = -1;
  let distance = 0;
  for (const letter of search) {
    const next = text.indexOf(letter, at + 1);
    if (next < 0) return null;
    distance += next - at - 1;
    at = next;
  }
  return distance + (text.includes(search) ? 0 : 1000);
}

/**
 * @param {{entries: {words: string, kind: string, act: Function}[], toTime, toSequence, last: number, isLocal: boolean}} props
 */
export function Palette({ entries, toTime, toSequence, last, isLocal, close }) {
  const [search, setSearch] = useState("");
  const [chosen, setChosen] = useState(0);
  const input = useRef();
  useLayoutEffect(() => input.current.focus(), []);
  const matches = useMemo(() => {
    const text = search.trim().toLowerCase();
    const typed = [];
    const ms = last == null ? null : parseTime(text, last, isLocal);
    if (ms != null && toTime) typed.push({ kind: "time", words: moment(ms), act: () => toTime(ms) });
    if (/^\d+$/.test(text) && toSequence) typed.push({ kind: "decision", words: `decision ${text}`, act: () => toSequence(Number(text)) });
    const ranked = entries
      .map((entry) => ({ entry, distance: fit(`${entry.words} ${entry.kind}`.toLowerCase(), text.replaceAll(" ", "")) }))
      .filter(({ distance }) => distance != null)
      .sort((left, right) => left.distance - right.distance)
      .map(({ entry }) => entry);
    return [...typed, ...(text ? ranked : entries)].slice(0, SHOWN);
  }, [search, entries, last]);
  const act = (entry) => {
    close();
    entry?.act();
  };
  const hear = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) setChosen((now) => (now + step + matches.length) % Math.max(1, matches.length));
    else if (event.key === "Enter") act(matches[chosen]);
    else return;
    event.preventDefault();
  };
  return html`<${Dialog} label="Go to" close=${close} class="palette">
    <input
      ref=${input}
      role="combobox"
      aria-label="Go to"
      aria-expanded="true"
      aria-controls="matches"
      aria-activedescendant=${matches.length ? `matches-${chosen}` : undefined}
      placeholder="09:33, a decision, a run, a view, a symbol"
      value=${search}
      onInput=${(event) => (setSearch(event.target.value), setChosen(0))}
      onKeyDown=${hear}
    />
    <ul id="matches" role="listbox" aria-label="Found">
      ${matches.map(
        (entry, index) =>
          html`<li key=${entry.kind + entry.words} id=${`matches-${index}`} role="option" aria-selected=${index === chosen} onClick=${() => act(entry)} onPointerMove=${() => setChosen(index)}>
            <span>${entry.words}</span><span class="kind">${entry.kind}</span>
          </li>`,
      )}
    </ul>
    ${!matches.length && html`<p class="muted">Nothing fits "${search}"; try a time such as 09:33, or part of a run's id.</p>`}
  <//>`;
}
