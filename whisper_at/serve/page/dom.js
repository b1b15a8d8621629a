// Small helpers for elements and times.

export const $ = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Seconds as 1:02 or 1:00:02, with tenths if asked for. */
export function clock(seconds, decimals = 0) {
  const scale = 10 ** decimals, rounded = Math.floor(seconds * scale + 1e-6) / scale;
  const h = Math.floor(rounded / 3600), m = Math.floor(rounded / 60) % 60;
  const s = (rounded % 60).toFixed(decimals).padStart(decimals ? 3 + decimals : 2, "0");
  return `${h ? `${h}:${String(m).padStart(2, "0")}` : m}:${s}`;
}

/** A name as it stands alone: haitian creole → Haitian Creole. */
export const titled = name => name.replace(/(^|[\s/])\p{L}/gu, letter => letter.toUpperCase());

export const percent = probability => `${Math.round(100 * probability)} %`;

/** The place of the last item that starts no later than a time, in a list by start; -1 if there is none. */
export function lastStarted(items, seconds) {
  let low = 0, high = items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (items[middle].start <= seconds) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Save bytes as a file of the user. */
export function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

export function showError(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

/** Write into the clipboard, and say so on the button for a moment. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    const label = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  } catch (error) {
    showError(`The browser does not let this page copy: ${error.message}`);
  }
}

export const debounced = (milliseconds, action) => {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
};
