/** The record within a file: answers by path. */

/** What an element holds, as base64 of gzip of JSON. @returns {Promise<Object>} answers by the paths of their requests */
export function recorded(element) {
  const bytes = Uint8Array.from(atob(element.textContent.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
