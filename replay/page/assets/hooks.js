/** Hooks that several views share. */
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";

const RETRY = 3_000; // ms before a server that was away is asked again

/** Whether a server may answer later what it does not now: it is away, busy or ending. */
const isPassing = (error) => !error.status || error.status === 503;

/**
 * The value of a promise: `{value, error, isLoading}`. `ask(signal)` runs again when `keys` change;
 * the old value stays until the new one is here, and while the server is away; `lost` is why then.
 * It is asked again so many ms after each answer, where `again` says so, and soon of a server that is away.
 */
export function useAnswer(ask, keys, again = null) {
  const [state, setState] = useState({ value: null, error: null, isLoading: true });
  const [turn, setTurn] = useState(0);
  useLayoutEffect(() => {
    const abort = new AbortController();
    setState((before) => ({ ...before, isLoading: true }));
    Promise.resolve()
      .then(() => ask(abort.signal))
      .then((value) => abort.signal.aborted || setState({ value, error: null, isLoading: false }))
      .catch((error) => abort.signal.aborted || setState((before) => (before.value && isPassing(error) ? { ...before, lost: error, isLoading: false } : { value: null, error, isLoading: false })));
    return () => abort.abort();
  }, [...keys, turn]);
  useEffect(() => {
    const failure = state.lost ?? state.error;
    const pause = failure && isPassing(failure) ? RETRY : again;
    if (!pause || state.isLoading) return undefined;
    const timer = setTimeout(() => setTurn((now) => now + 1), pause);
    return () => clearTimeout(timer);
  }, [state, again]);
  return state;
}

/** Hear an event of `target` while mounted. */
export function useEvent(target, name, hear) {
  const heard = useRef();
  heard.current = hear;
  useEffect(() => {
    const listen = (event) => heard.current(event);
    target.addEventListener(name, listen);
    return () => target.removeEventListener(name, listen);
  }, [target, name]);
}

/** Call `measure(element)` once it is drawn, and where its size changes. @returns {Object} its ref */
export function useSize(measure) {
  const box = useRef();
  useLayoutEffect(() => {
    measure(box.current);
    const observer = new ResizeObserver(() => measure(box.current));
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  return box;
}

/**
 * An answer in lines, which takes long: `{progress, result, error, ask, cancel}`. `ask(work, doing)`
 * ends the one before, and so does a change of `keys`; `work(told, signal)` is a promise.
 */
export function useTask(keys) {
  const [state, setState] = useState({});
  const abort = useRef(null);
  const cancel = () => {
    abort.current?.abort();
    setState({});
  };
  useEffect(() => {
    setState({});
    return () => abort.current?.abort();
  }, keys);
  const ask = async (work, doing) => {
    abort.current?.abort();
    const turn = (abort.current = new AbortController());
    const set = (next) => turn.signal.aborted || setState(next);
    set({ progress: { share: 0, doing } });
    try {
      set({ result: await work((progress) => set({ progress }), turn.signal) });
    } catch (error) {
      set({ error });
    }
  };
  return { ...state, ask, cancel };
}

/** What stands in the place of an answer until it comes; only a long wait is shown. */
export const Waiting = ({ doing = "Reading the record" }) => html`<p class="muted late" role="status">${doing}</p>`;

/** Details whose inside, `make()`, is made where somebody opens them. */
export function Folded({ class: name, summary, make }) {
  const [isOpen, setOpen] = useState(false);
  return html`<details class=${name} onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>${summary}</summary>
    ${isOpen && make()}
  </details>`;
}
