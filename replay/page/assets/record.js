/** The record within a file: answers by path, their long columns unpacked. */

const MARK = "\u0001"; // as tracepaper.replay.page.packing writes it

/** The text of base64 of gzip. */
function inflated(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/** A column of which there are the differences, times 10**decimals. */
function column([decimals, ...steps]) {
  const scale = 10 ** decimals;
  let whole = 0;
  return steps.map((step) => (step === null ? null : (whole += step) / scale));
}

/** What an element holds. @returns {Promise<Object>} answers by the paths of their requests */
export async function recorded(element) {
  return JSON.parse(await inflated(element.textContent), (_, value) => (value?.[MARK] ? column(value[MARK]) : value));
}
