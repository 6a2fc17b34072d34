"use strict";
// Draws the edges of attention: decided bars above, what they looked at below, a colour a head.
for (const view of document.querySelectorAll("div.edges")) {
  const { firsts, bars, scale, times, shares } = JSON.parse(view.querySelector("script").textContent);
  const svg = view.querySelector("svg");
  const said = view.querySelector(".edges-said");
  const buttons = view.querySelector(".edges-layers");
  const [width, left, right, top, bottom] = [960, 16, 944, 52, 262];
  const decisions = times.length;
  const heads = shares[0].length;
  const cells = firsts.length;
  const hidden = new Set();
  let layer = shares.length - 1;
  let shown = { decision: decisions - 1 };

  const make = (name, given, text) => {
    const made = document.createElementNS(svg.namespaceURI, name);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const colour = (head) => `var(--head-${(head % 8) + 1})`;
  const above = (decision) => left + ((decision + 0.5) * (right - left)) / decisions;
  const below = (cell) => right - ((cell + 0.5) * (right - left)) / cells; // the newest on the right
  const percent = (share) => `${((100 * share) / scale).toFixed(1)} %`;
  const minute = (time) => new Date(time).toISOString().slice(0, 16).replace("T", " ");
  const span = (cell) => {
    const last = (cell + 1 < cells ? firsts[cell + 1] : bars) - 1;
    return firsts[cell] === last ? `${last}` : `${firsts[cell]}–${last}`;
  };

  function strongest() {
    // Of each head: the cell it looks at most from a bar, or the bar that looks at a cell most.
    const found = [];
    for (let head = 0; head < heads; head++) {
      if (hidden.has(head)) continue;
      const rows = shares[layer][head];
      const one = shown.cell === undefined
        ? rows[shown.decision] : rows.map((row) => row[shown.cell]);
      const most = one.indexOf(Math.max(...one));
      const where = shown.cell === undefined ? `${span(most)} bars back` : minute(times[most]);
      found.push(`head ${head + 1} ${percent(one[most])} ${shown.cell === undefined ? "on" : "from"} ${where}`);
    }
    const whose = shown.cell === undefined
      ? `From ${minute(times[shown.decision])} UTC, layer ${layer + 1}, most: `
      : `To ${span(shown.cell)} bars back, layer ${layer + 1}, most: `;
    said.textContent = `${whose}${found.join("; ")}.`;
  }

  function edges() {
    // Every line of what is chosen, each head a little beside the others; the strongest last.
    const found = [];
    for (let head = 0; head < heads; head++) {
      if (hidden.has(head)) continue;
      shares[layer][head].forEach((row, decision) => row.forEach((share, cell) => {
        const chosen = shown.cell === undefined ? decision === shown.decision : cell === shown.cell;
        if (chosen && share > scale / 500) found.push({ head, decision, cell, share });
      }));
    }
    found.sort((one, other) => one.share - other.share);
    const most = found.length ? found[found.length - 1].share : 1;
    return found.map(({ head, decision, cell, share }) => {
      const beside = ((head - (heads - 1) / 2) * 0.8) / heads;
      const from = above(decision) + (beside * (right - left)) / decisions;
      const to = below(cell) + (beside * (right - left)) / cells;
      const middle = (top + bottom) / 2;
      return make("path", {
        d: `M${from.toFixed(1)} ${top}C${from.toFixed(1)} ${middle} ${to.toFixed(1)} ${middle} ${to.toFixed(1)} ${bottom}`,
        fill: "none", stroke: colour(head), "stroke-width": (0.5 + (4 * share) / most).toFixed(2),
        "stroke-opacity": (0.1 + (0.8 * share) / most).toFixed(2),
      });
    });
  }

  function draw() {
    svg.replaceChildren();
    svg.append(make("text", { x: left, y: 16 }, `${minute(times[0])} UTC`));
    svg.append(make("text", { x: width / 2, y: 16, "text-anchor": "middle" }, "decided bars: hover over one"));
    svg.append(make("text", { x: right, y: 16, "text-anchor": "end" }, minute(times[decisions - 1])));
    svg.append(...edges());
    const wide = (right - left) / decisions;
    for (let decision = 0; decision < decisions; decision++) {
      const bar = make("rect", {
        class: decision === shown.decision ? "bar chosen" : "bar", tabindex: 0,
        x: left + decision * wide + 1, y: 24, width: Math.max(wide - 2, 1), height: top - 24,
      });
      bar.append(make("title", {}, `${minute(times[decision])} UTC`));
      bar.addEventListener("mouseenter", () => { shown = { decision }; draw(); });
      svg.append(bar);
    }
    const narrow = (right - left) / cells;
    for (let cell = 0; cell < cells; cell++) {
      const bar = make("rect", {
        class: cell === shown.cell ? "bar chosen" : "bar",
        x: right - (cell + 1) * narrow + 0.5, y: bottom, width: Math.max(narrow - 1, 1), height: 22,
      });
      bar.append(make("title", {}, `${span(cell)} bars back`));
      bar.addEventListener("mouseenter", () => { shown = { cell }; draw(); });
      svg.append(bar);
    }
    for (let cell = 0; cell < cells; cell += 8) {
      svg.append(make("text", { x: below(cell), y: bottom + 38, "text-anchor": "middle" }, `${firsts[cell]}`));
    }
    svg.append(make("text", { x: left, y: bottom + 58 }, "bars back from the newest, wider cells further back; hover over one for who looked at it"));
    buttons.replaceChildren();
    shares.forEach((_, at) => {
      const button = document.createElement("button");
      button.textContent = `layer ${at + 1}`;
      button.className = at === layer ? "chosen" : "";
      button.addEventListener("click", () => { layer = at; draw(); });
      buttons.append(button);
    });
    for (let head = 0; head < heads; head++) {
      const button = document.createElement("button");
      button.textContent = `head ${head + 1}`;
      button.style.color = colour(head);
      button.className = hidden.has(head) ? "hidden" : "";
      button.addEventListener("click", () => { hidden.has(head) ? hidden.delete(head) : hidden.add(head); draw(); });
      buttons.append(button);
    }
    strongest();
  }
  draw();
}
