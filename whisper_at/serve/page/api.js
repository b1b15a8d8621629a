// Requests to the server that the page comes from, with the key that it asks for.

const KEY = "whisper_at.key";
const BROWSER_KEY = "openai-insecure-api-key.";
let askForKey = async () => null;

export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = () => sessionStorage.getItem(KEY) ?? "";
const url = path => new URL(path, document.baseURI);
const UNREACHABLE = "The server cannot be reached. Is it still running?";

/** Set what asks the user for a key: given what was wrong with the last one, it returns a key, or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function isKeyRenewed(tried) {
  if (key() !== tried) return true; // another request has asked meanwhile
  const given = await askForKey(tried ? "The server does not know this key." : "");
  if (given === null) return false;
  sessionStorage.setItem(KEY, given);
  return true;
}

const authorization = tried => (tried ? { Authorization: `Bearer ${tried}` } : {});

function messageOf(status, body) {
  try {
    return JSON.parse(body).error.message;
  } catch {
    return `The server answered with status ${status}.`;
  }
}

/** Fetch a path; throw ServerError with the server's own message. */
export async function request(path, options = {}) {
  const tried = key();
  let response;
  try {
    response = await fetch(url(path), { ...options, headers: authorization(tried) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(UNREACHABLE, 0);
  }
  if (response.ok) return response;
  if (response.status === 401 && await isKeyRenewed(tried)) return request(path, options);
  throw new ServerError(messageOf(response.status, await response.text()), response.status);
}

export const getJson = async (path, query = {}, options = {}) => {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value != null));
  return (await request(words.size ? `${path}?${words}` : path, options)).json();
};

/**
 * Send a recording; call onUpload(share), onOpened(headers) and onEvent(event) on the way.
 * XMLHttpRequest, as fetch does not tell how far an upload is.
 */
export async function transcribe(path, form, { signal, onUpload, onOpened, onEvent }) {
  const tried = key();
  const answer = await new Promise((resolve, reject) => {
    const http = new XMLHttpRequest();
    let read = 0;
    const readEvents = () => {
      for (let end; (end = http.responseText.indexOf("\n\n", read)) >= 0; read = end + 2) {
        const event = JSON.parse(http.responseText.slice(read, end).replace(/^data: /, ""));
        if (event.error) throw new ServerError(event.error.message, 500);
        onEvent(event);
      }
    };
    const attempt = action => {
      try {
        action();
      } catch (error) {
        http.abort();
        reject(error);
      }
    };
    http.upload.onprogress = event => { if (event.lengthComputable) onUpload(event.loaded / event.total); };
    http.upload.onload = () => onUpload(1);
    http.onreadystatechange = () => {
      if (http.readyState === XMLHttpRequest.HEADERS_RECEIVED && http.status === 200) {
        onOpened({ id: http.getResponseHeader("X-Result-ID"), duration: Number(http.getResponseHeader("X-Audio-Duration")) });
      }
    };
    http.onprogress = () => { if (http.status === 200) attempt(readEvents); };
    http.onload = () => {
      if (http.status === 200) attempt(readEvents);
      resolve({ status: http.status, body: http.status === 200 ? "" : http.responseText });
    };
    http.onerror = () => reject(new ServerError(UNREACHABLE, 0));
    http.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => http.abort());
    http.open("POST", url(path));
    for (const [name, value] of Object.entries(authorization(tried))) http.setRequestHeader(name, value);
    http.send(form);
  });
  if (answer.status === 401 && await isKeyRenewed(tried)) {
    return transcribe(path, form, { signal, onUpload, onOpened, onEvent });
  }
  if (answer.status !== 200) throw new ServerError(messageOf(answer.status, answer.body), answer.status);
}

/** Open a realtime session. */
export function openRealtime(model) {
  const address = url(`v1/realtime?intent=transcription&model=${encodeURIComponent(model)}`);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  try {
    return new WebSocket(address, key() ? ["realtime", BROWSER_KEY + key()] : ["realtime"]);
  } catch {
    throw new ServerError("The key has letters that a WebSocket cannot carry; the server needs another one for this.", 0);
  }
}
