// A realtime session that survives a connection which drops: sound that was not sent waits, times go on.

import { openRealtime } from "./api.js";

const TRANSCRIPTION = "conversation.item.input_audio_transcription";
const RETRY_SECONDS = [1, 2, 4, 8, 8, 8];
const MAX_WAITING_SECONDS = 60;
const FINISH_SECONDS = 20;

function base64(samples) {
  const bytes = new Uint8Array(samples.buffer);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

export class RealtimeSession {
  /**
   * @param settings {model, language, prompt, hasSounds, rate}
   * @param on {final, partial, sound, status, lost}: what is called with each of these
   */
  constructor(settings, on) {
    Object.assign(this, { settings, on });
    this.waiting = []; // pieces that are not sent
    this.heard = 0; // samples that were sent or dropped
    this.tries = 0;
    this.isEnding = false;
    this.connect();
  }

  connect() {
    this.offset = this.heard / this.settings.rate;
    this.isReady = false;
    this.socket = openRealtime(this.settings.model);
    this.socket.onmessage = ({ data }) => this.read(JSON.parse(data));
    this.socket.onclose = event => this.closed(event);
  }

  read(event) {
    const { offset } = this;
    const shifted = part => ({ ...part, start: part.start + offset, ...(part.end === undefined ? {} : { end: part.end + offset }) });
    if (event.type === "session.created") this.configure();
    else if (event.type === "session.updated") this.ready();
    else if (event.type === `${TRANSCRIPTION}.delta`) this.on.final({ ...shifted(event), item: event.item_id, words: event.words?.map(shifted) });
    else if (event.type === `${TRANSCRIPTION}.partial`) this.on.partial(event.text);
    else if (event.type === `${TRANSCRIPTION}.completed` && this.isEnding) this.socket.close();
    else if (event.type === "audio_event.started") this.on.sound(shifted(event));
    else if (event.type === "audio_event") this.on.sound(shifted(event));
    else if (event.type === "error") {
      if (this.isEnding) this.socket.close(); // nothing was left to complete
      else this.fail(event.error.message);
    }
  }

  configure() {
    const { model, language, prompt, hasSounds, rate } = this.settings;
    const input = { format: { type: "audio/pcm", rate }, transcription: { model, language, prompt } };
    const session = { audio: { input }, include: ["item.input_audio_transcription.partial"], at_time_res: hasSounds ? 2 : null };
    this.send({ type: "session.update", session });
  }

  ready() {
    this.isReady = true;
    this.tries = 0;
    this.on.status("Listening …");
    for (const samples of this.waiting.splice(0)) this.append(samples);
    if (this.isEnding) this.commit();
  }

  send(event) {
    this.socket.send(JSON.stringify(event));
  }

  append(samples) {
    if (!this.isReady) {
      this.waiting.push(samples);
      if (this.waiting.length > 10 * MAX_WAITING_SECONDS) {
        this.heard += this.waiting.shift().length;
        this.offset = this.heard / this.settings.rate;
      }
      return;
    }
    this.heard += samples.length;
    this.send({ type: "input_audio_buffer.append", audio: base64(samples) });
  }

  /** Have the server tell what is left; then the session ends. */
  end() {
    this.isEnding = true;
    if (this.isReady) this.commit();
    else this.fail(null);
    return new Promise(resolve => {
      this.ended = resolve;
      setTimeout(() => this.socket.close(), 1000 * FINISH_SECONDS);
      if (this.socket.readyState === WebSocket.CLOSED) resolve();
    });
  }

  commit() {
    this.send({ type: "input_audio_buffer.commit" });
  }

  fail(message) {
    this.isFailed = true;
    this.socket.close();
    if (message) this.on.lost(message);
  }

  closed({ code, reason }) {
    this.isReady = false;
    clearTimeout(this.timer);
    this.on.partial("");
    if (this.isEnding || this.isFailed) return this.ended?.();
    if (code === 1008) return this.on.lost(reason || "The server refuses this page.");
    if (this.tries >= RETRY_SECONDS.length) return this.on.lost("The connection is lost. Is the server still running?");
    const seconds = RETRY_SECONDS[this.tries++];
    this.on.status(`${reason || "The connection was lost"}; the next try is in ${seconds} s. The microphone goes on.`);
    this.timer = setTimeout(() => this.connect(), 1000 * seconds);
  }
}
