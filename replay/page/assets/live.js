/** The stream of stored steps: one WebSocket, which reconnects by itself. */
import { useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { source } from "./api.js";

const WAITS = [500, 1000, 2000, 5000, 10000]; // ms between attempts
const ORDERLY = [1000, 1001]; // close codes of a daemon that ends in good order
const TRY_AGAIN_LATER = 1013; // the server has too many readers

/**
 * Listen while mounted. Calls `onStep(step)` for each step and `onHello(isAgain)` for each
 * connection, so that missed steps can be requested.
 * @returns {{state: "none"|"connecting"|"live"|"lost"|"ended"|"refused", since: number|null}}
 */
export function useStream({ isWanted, run, onStep, onHello }) {
  const [state, setState] = useState({ state: "none", since: null });
  const listeners = useRef();
  listeners.current = { onStep, onHello };
  useEffect(() => {
    if (!isWanted || source.isRecord) {
      setState({ state: "none", since: null });
      return undefined;
    }
    let socket = null;
    let timer = null;
    let attempts = 0;
    let wasLive = false;
    let isOver = false;
    const connect = () => {
      const scheme = location.protocol === "https:" ? "wss:" : "ws:";
      socket = new WebSocket(`${scheme}//${location.host}/api/v1/stream?${new URLSearchParams({ run })}`);
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === "hello") {
          attempts = 0;
          setState({ state: "live", since: null });
          listeners.current.onHello(wasLive);
          wasLive = true;
        } else if (message.type === "step") listeners.current.onStep(message);
      };
      socket.onclose = ({ code }) => {
        if (isOver) return;
        const closed = code === TRY_AGAIN_LATER ? "refused" : ORDERLY.includes(code) ? "ended" : "lost";
        // After an orderly end, failed reconnections are no news.
        setState((now) => {
          const state = closed === "lost" && now.state === "ended" ? "ended" : closed;
          return { state, since: (now.state === state ? now.since : null) ?? Date.now() };
        });
        timer = setTimeout(connect, WAITS[Math.min(attempts++, WAITS.length - 1)]);
      };
    };
    setState({ state: "connecting", since: null });
    connect();
    return () => {
      isOver = true;
      clearTimeout(timer);
      socket.close();
    };
  }, [isWanted, run]);
  return state;
}
