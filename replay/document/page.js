"use strict";
// Draws every chart of the page, in the colours of the light or the dark.
(async () => {
  const root = document.documentElement;
  const prefers = window.matchMedia("(prefers-color-scheme: dark)");
  const figures = JSON.parse(document.getElementById("figures").textContent);

  function inflated(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  }

  // A large map is sent as a byte a cell: a logarithm between two ends, 255 for nothing.
  async function unpacked({ cells, columns, low, high }) {
    const bytes = new Uint8Array(await inflated(cells).arrayBuffer());
    const rows = [];
    for (let at = 0; at < bytes.length; at += columns) {
      const row = Array.from(bytes.subarray(at, at + columns));
      rows.push(row.map((byte) => (byte === 255 ? null : low + ((high - low) * byte) / 254)));
    }
    return rows;
  }

  // Ratios are sent as logarithms alone; what a pointer shows is made of them here.
  for (const figure of Object.values(figures)) {
    for (const trace of figure.data) {
      if (trace.meta === "log2") trace.customdata = trace.z.map((row) => row.map((z) => 2 ** z));
    }
  }

  // The library lies in the page compressed. A browser without DecompressionStream (before 2023)
  // shows every table, and says where a chart would be.
  async function unpack(name) {
    const script = document.createElement("script");
    script.textContent = await inflated(document.getElementById(name).textContent.trim()).text();
    document.head.append(script);
  }

  async function unpackMaps() {
    for (const trace of Object.values(figures).flatMap((figure) => figure.data)) {
      if (!trace.meta?.cells) continue;
      trace.z = await unpacked(trace.meta);
      trace.customdata = trace.z.map((row) => row.map((z) => (z === null ? null : 10 ** z)));
    }
  }

  function coloured(value, style) {
    if (typeof value === "string") {
      const name = /^var\((--[\w-]+)\)$/.exec(value);
      if (name) return style.getPropertyValue(name[1]).trim();
      return value === "inherit" ? style.fontFamily : value;
    }
    if (Array.isArray(value)) {
      return value.map((item) => coloured(item, style));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([key, item]) => [key, coloured(item, style)])
      );
    }
    return value;
  }

  function draw() {
    const style = getComputedStyle(document.body);
    for (const [name, figure] of Object.entries(figures)) {
      const made = coloured(figure, style);
      Plotly.react(name, made.data, made.layout, {
        displaylogo: false, displayModeBar: false, responsive: true,
      });
    }
  }

  function paint(theme) {
    root.dataset.theme = theme;
    draw();
  }

  root.dataset.theme = prefers.matches ? "dark" : "light";
  try {
    await unpack("plotly");
    await unpackMaps();
  } catch (error) {
    for (const name of Object.keys(figures)) {
      document.getElementById(name).textContent = `This browser cannot draw the chart (${error}).`;
    }
    return;
  }
  document.querySelector("button.theme").addEventListener("click", () => {
    paint(root.dataset.theme === "dark" ? "light" : "dark");
  });
  prefers.addEventListener("change", (event) => paint(event.matches ? "dark" : "light"));
  paint(prefers.matches ? "dark" : "light");
})();
