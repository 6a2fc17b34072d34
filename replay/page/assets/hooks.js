/** Hooks that several views share. */
import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";

const RETRY = 3_000; // ms before a request is repeated after a passing failure

/** Whether an error may pass: the server is away, busy or stopping. */
const isPassing = (error) => !error.status || error.status === 503;

/**
 * The value of a promise: `{value, error, isLoading, lost}`. `ask(signal)` runs again when `keys`
 * change, `again` ms after each answer, and soon after a passing failure. The old value stays until
 * the new one arrives; after a passing failure `lost` is the error.
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

/** Listen for an event of `target` while mounted. */
export function useEvent(target, name, hear) {
  const heard = useRef();
  heard.current = hear;
  useEffect(() => {
    const listen = (event) => heard.current(event);
    target.addEventListener(name, listen);
    return () => target.removeEventListener(name, listen);
  }, [target, name]);
}

/** Call `measure(element)` after drawing and after size changes. @returns {Object} the element's ref */
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
 * A long task: `{progress, result, error, ask, cancel}`. `ask(work, doing)` starts one and cancels the
 * previous, as does a change of `keys`; `work(progressed, signal)` returns a promise.
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

/** A placeholder for an answer, which appears only after a while. */
export const Waiting = ({ doing = "Reading the record" }) => html`<p class="muted late" role="status">${doing}</p>`;

/** A details element whose content, `make()`, is created when it is opened. */
export function Folded({ class: name, summary, make }) {
  const [isOpen, setOpen] = useState(false);
  return html`<details class=${name} onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>${summary}</summary>
    ${isOpen && make()}
  </details>`;
}
