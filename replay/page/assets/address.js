/** The shareable address of a state: `#/run/ID/decision/SEQUENCE`. */
import { useState } from "./vendor/htm-preact.js";
import { useEvent } from "./hooks.js";

/**
 * @typedef {Object} Address
 * @property {"run"|"runs"|"sweep"} place
 * @property {string|null} run
 * @property {string} view one of VIEWS
 * @property {number|null} sequence of the pinned decision
 * @property {string|null} other the other run of a comparison
 * @property {string|null} instrument
 * @property {string|null} sweep
 */

export const VIEWS = ["now", "account", "gates", "health", "model", "report", "compare"];

function partsOf(path) {
  try {
    return path.split("/").map(decodeURIComponent);
  } catch {
    return []; // an invalid % escape
  }
}

/** @returns {Address} */
export function parseAddress(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const parts = partsOf(path);
  const instrument = new URLSearchParams(query).get("instrument");
  const address = { place: "run", run: null, view: "now", sequence: null, other: null, instrument };
  if (parts[0] === "runs") return { ...address, place: "runs" };
  if (parts[0] === "sweep") return { ...address, place: "sweep", sweep: parts[1] || null };
  if (parts[0] !== "run") return address;
  address.run = parts[1] || null;
  if (parts[2] === "decision" && /^\d+$/.test(parts[3] ?? "")) address.sequence = Number(parts[3]);
  else if (VIEWS.includes(parts[2])) address.view = parts[2];
  if (address.view === "compare") address.other = parts[3] || null;
  return address;
}

/** Return the hash of an address. */
export function formatAddress({ place, run, view = "now", sequence, other, instrument, sweep }) {
  if (place === "runs") return "#/runs";
  if (place === "sweep") return `#/sweep/${encodeURIComponent(sweep)}`;
  if (!run) return "#/";
  let hash = `#/run/${encodeURIComponent(run)}`;
  if (view !== "now") hash += `/${view}`;
  else if (sequence != null) hash += `/decision/${sequence}`;
  if (view === "compare" && other) hash += `/${encodeURIComponent(other)}`;
  return instrument ? `${hash}?${new URLSearchParams({ instrument })}` : hash;
}

/** Go to an address; with `quietly`, without an entry in the browser's history. */
export function go(address, quietly = false) {
  const hash = formatAddress({ place: "run", ...address });
  if (hash === location.hash) return;
  if (quietly) {
    // Use the full URL: in a notebook a relative one would be the notebook's.
    history.replaceState(null, "", location.href.split("#")[0] + hash);
    dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = hash;
}

/** The current address, as state. @returns {Address} */
export function useAddress() {
  const [address, setAddress] = useState(() => parseAddress(location.hash));
  useEvent(window, "hashchange", () => setAddress(parseAddress(location.hash)));
  return address;
}
