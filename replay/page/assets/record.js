/** The record in a file: answers by path. */

/** Unpack an element's text: base64 of gzipped JSON. @returns {Promise<Object>} answers by request path */
export function recorded(element) {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
