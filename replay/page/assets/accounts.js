/** How the accounts of a run are drawn: each in a colour and a dash of its own, the same everywhere. */

const OWN = { tone: "accent", dash: "solid", width: 2 };
const SHADOWS = [
  { tone: "shadow-1", dash: "dashed", width: 1 },
  { tone: "shadow-2", dash: "long", width: 1 },
  { tone: "shadow-3", dash: "sparse", width: 2 },
];
const BENCHMARKS = [
  { tone: "muted", dash: "solid", width: 1 },
  { tone: "ink", dash: "dotted", width: 1 },
];

/** Tone, dash and width of each account, by its name. @returns {Map<string, {tone: string, dash: string, width: number}>} */
export function accountStyles(run) {
  const [own, ...others] = run.accounts;
  const styles = new Map(own ? [[own.name, OWN]] : []);
  for (const [kind, isStored] of [[SHADOWS, true], [BENCHMARKS, false]])
    others.filter((each) => each.is_stored === isStored).forEach((each, index) => styles.set(each.name, kind[index % kind.length]));
  return styles;
}
