/** Hooks that several views share. */
import { html, useEffect, useState } from "./vendor/htm-preact.js";

/** Whether a server may answer later what it does not now: it is away, busy or ending. */
export const isPassing = (error) => !error.status || error.status === 503;

/**
 * The value of a promise: `{value, error, isLoading}`. `ask(signal)` runs again when `keys` change;
 * the old value stays until the new one is here, and while the server is away; `lost` is why then.
 */
export function useAnswer(ask, keys) {
  const [state, setState] = useState({ value: null, error: null, isLoading: true });
  useEffect(() => {
    const abort = new AbortController();
    setState((before) => ({ ...before, isLoading: true }));
    Promise.resolve()
      .then(() => ask(abort.signal))
      .then((value) => abort.signal.aborted || setState({ value, error: null, isLoading: false }))
      .catch((error) => abort.signal.aborted || setState((before) => (before.value && isPassing(error) ? { ...before, lost: error, isLoading: false } : { value: null, error, isLoading: false })));
    return () => abort.abort();
  }, keys);
  return state;
}

/** True once `isBusy` has lasted 300 ms, so that short waits show nothing. */
export function useSlow(isBusy) {
  const [isSlow, setSlow] = useState(false);
  useEffect(() => {
    if (!isBusy) {
      setSlow(false);
      return undefined;
    }
    const timer = setTimeout(() => setSlow(true), 300);
    return () => clearTimeout(timer);
  }, [isBusy]);
  return isSlow;
}

/** What stands in the place of an answer until it comes; only a long wait is said. */
export function Waiting({ doing = "Reading the record" }) {
  return html`<p class="muted" role="status">${useSlow(true) ? doing : " "}</p>`;
}
