/** The record within a file: answers by path, their long columns unpacked. */

const MARK = "\u0001"; // as tracepaper.replay.page.packing writes it

/** The bytes of base64 of gzip. */
async function inflated(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Differences of integers, zigzag-encoded, in planes of bytes. */
function column(bytes, { at, count, first: whole, bytes: size, decimals = 0, nulls, words }) {
  if (words) return Array.from(bytes.subarray(at, at + count), (place) => words[place]);
  const scale = 10 ** decimals;
  const values = new Array(count);
  for (let index = 0; index < count; index++) {
    let code = 0;
    for (let plane = size - 1; plane >= 0; plane--) code = code * 256 + bytes[at + plane * count + index];
    whole += code % 2 ? -(code + 1) / 2 : code / 2;
    values[index] = nulls != null && bytes[nulls + index] ? null : whole / scale;
  }
  return values;
}

/** What an element holds. @returns {Promise<Object>} answers by the paths of their requests */
export async function recorded(element) {
  const bytes = await inflated(element.textContent);
  const zero = bytes.indexOf(0);
  const end = zero < 0 ? bytes.length : zero;
  const columns = bytes.subarray(end + 1);
  const text = new TextDecoder().decode(bytes.subarray(0, end));
  return JSON.parse(text, (_, value) => (value?.[MARK] ? column(columns, value[MARK]) : value));
}
