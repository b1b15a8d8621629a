// The live tab: words and sounds while they happen.

import { $, clock, copy, make, percent, save, showError } from "./dom.js";
import { hear } from "./file.js";
import { openMicrophone } from "./microphone.js";
import { RealtimeSession } from "./realtime.js";
import { chosen, heads } from "./settings.js";

const partial = make("span", { className: "partial" });
let microphone = null, session = null, pieces = [], words = [], sounds = [], rate = 16000, isStarting = false, item = null;

async function start() {
  isStarting = true;
  showError("");
  [pieces, words, sounds, item] = [[], [], [], null];
  $("live-text").replaceChildren(partial);
  $("live-sounds").replaceChildren();
  $("live-sounds").hidden = !Object.keys(heads()).length;
  $("live-actions").hidden = true;
  $("live-status").textContent = "Asking for the microphone …";
  const { fields } = chosen(), hasSounds = Object.keys(heads()).length > 0;
  try {
    microphone = await openMicrophone((samples, level) => {
      pieces.push(samples);
      $("level").value = level;
      session?.append(samples);
    });
    rate = microphone.rate;
    session = new RealtimeSession({ ...fields, hasSounds, rate }, {
      final: addFinal,
      partial: text => { partial.textContent = text; },
      sound: addSound,
      status: message => { $("live-status").textContent = message; },
      lost: message => { showError(message); stop(); },
    });
    $("live-status").textContent = "Connecting …";
    $("listen").textContent = "Stop";
    $("listen").classList.add("on");
  } catch (error) {
    microphone?.close();
    microphone = null;
    $("live-status").textContent = "";
    showError(error.message);
  } finally {
    isStarting = false;
  }
}

async function stop() {
  if (!microphone) return;
  microphone.close();
  microphone = null;
  $("level").value = 0;
  $("listen").disabled = true;
  $("live-status").textContent = "Finishing …";
  await session.end();
  session = null;
  $("listen").disabled = false;
  $("listen").textContent = "Start the microphone";
  $("listen").classList.remove("on");
  $("live-status").textContent = `${clock(pieces.reduce((sum, piece) => sum + piece.length, 0) / rate)} heard.`;
  $("live-actions").hidden = !pieces.length;
}

function addFinal(event) {
  if (item !== null && item !== event.item) partial.before(make("br"));
  item = event.item;
  words.push(...(event.words ?? []).map(word => ({ ...word, item })));
  const span = make("span", { className: "final", textContent: event.delta });
  if (event.start !== undefined && !Number.isNaN(event.start)) span.title = clock(event.start, 1);
  partial.before(span);
  partial.textContent = "";
  span.scrollIntoView({ block: "nearest" });
}

/** A sound that has begun, or has ended: then it has an end. */
function addSound(event) {
  const id = [event.head, event.index, event.start.toFixed(2)].join("/");
  let sound = sounds.find(one => one.id === id);
  if (!sound) {
    sound = { id, chip: make("li") };
    sounds.push(sound);
    $("live-sounds").append(sound.chip);
  }
  Object.assign(sound, { start: event.start, end: event.end, name: event.name, head: event.head, probability: event.probability });
  const times = event.end === undefined ? `${clock(event.start)} –` : `${clock(event.start)} – ${clock(event.end)}`;
  sound.chip.classList.toggle("on", event.end === undefined);
  sound.chip.replaceChildren(make("b", { textContent: event.name, dir: "auto" }), ` ${times} `, make("span", { className: "soft", textContent: percent(event.probability) }));
}

/** Lines of words, and sounds in brackets, in order of time. */
function asText() {
  const lines = [];
  for (const word of words) {
    if (lines.at(-1)?.item !== word.item) lines.push({ item: word.item, start: word.start, text: "" });
    lines.at(-1).text += word.word;
  }
  const all = [...lines, ...sounds.map(({ start, name }) => ({ start, text: `[${name}]` }))];
  return all.sort((a, b) => a.start - b.start).map(({ start, text }) => `${clock(start)} ${text.trim()}\n`).join("");
}

function asWav() {
  const length = pieces.reduce((sum, piece) => sum + piece.byteLength, 0), header = new DataView(new ArrayBuffer(44));
  const letters = (place, text) => [...text].forEach((letter, i) => header.setUint8(place + i, letter.charCodeAt(0)));
  letters(0, "RIFF");
  header.setUint32(4, 36 + length, true);
  letters(8, "WAVEfmt ");
  header.setUint32(16, 16, true);
  header.setUint16(20, 1, true);
  header.setUint16(22, 1, true);
  header.setUint32(24, rate, true);
  header.setUint32(28, 2 * rate, true);
  header.setUint16(32, 2, true);
  header.setUint16(34, 16, true);
  letters(36, "data");
  header.setUint32(40, length, true);
  return new File([header, ...pieces], "microphone.wav", { type: "audio/wav" });
}

$("listen").onclick = () => {
  if (microphone) stop();
  else if (!isStarting && !session) start();
};
$("live-copy").onclick = () => copy(asText(), $("live-copy"));
$("live-txt").onclick = () => save(new Blob([asText()], { type: "text/plain" }), "live.txt");
$("live-json").onclick = () => {
  const events = sounds.map(({ id, chip, ...sound }) => sound);
  const text = words.map(word => word.word).join("").trim();
  save(new Blob([JSON.stringify({ text, words, events }, null, 2)], { type: "application/json" }), "live.json");
};
$("live-wav").onclick = () => save(asWav(), "microphone.wav");
$("live-again").onclick = () => hear(asWav());
