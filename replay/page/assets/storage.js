/** Browser storage; a file opened from disk may have none. */
const attempt = (act) => {
  try {
    return act();
  } catch {
    return null; // the choice lasts as long as the page
  }
};

export const kept = (key) => attempt(() => localStorage.getItem(key));
export const keep = (key, value) => attempt(() => localStorage.setItem(key, value));
