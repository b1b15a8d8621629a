// A recording as a file: sent, heard, shown.

import { getJson, request, transcribe } from "./api.js";
import { $, clock, copy, showError, titled } from "./dom.js";
import * as downloads from "./downloads.js";
import * as player from "./player.js";
import { chosen, heads } from "./settings.js";
import { Sounds } from "./sounds.js";
import { Timeline } from "./timeline.js";
import { Transcript } from "./transcript.js";
import { readPeaks } from "./waveform.js";

const ROW_SECONDS = "2"; // of the rows that are shown while the rest is still heard

const play = seconds => player.seek(seconds, true);
export const timeline = new Timeline($("timeline"), $("tooltip"), seconds => player.seek(seconds));
export const transcript = new Transcript($("text"), play);
const sounds = new Sounds(lanes => timeline.setData({ lanes }), play);
let running = null, kept = null, hasSounds = false;

/** Hear a file, and show what is in it as it comes. */
export async function hear(file) {
  running?.abort();
  const control = new AbortController(), begun = performance.now();
  running = control;
  forget();
  showError("");
  $("tab-file").click();
  $("result").hidden = true;
  transcript.clear();
  sounds.clear();
  timeline.setData({ duration: 0, peaks: null, segments: [], words: [], lanes: [] });
  player.load(file);
  readPeaks(file).then(peaks => { if (running === control) timeline.setData({ peaks }); });

  let result = null, isDone = false;
  const events = [];
  tell(`Sending ${file.name} …`, 0);
  $("work").hidden = false;
  $("cancel").hidden = false;
  try {
    const { task, fields } = chosen(), form = new FormData();
    form.append("file", file, file.name || "recording");
    for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
    for (const [name, value] of Object.entries({ stream: true, keep: true, response_format: "verbose_json" })) form.append(name, value);
    form.append("timestamp_granularities[]", "word");
    hasSounds = Object.keys(heads()).length > 0;
    if (hasSounds) form.append("at_time_res", ROW_SECONDS);
    await transcribe(`v1/audio/${task}`, form, {
      signal: control.signal,
      onUpload: share => tell(share < 1 ? `Sending ${file.name} …` : `${file.name} waits its turn …`, share < 1 ? share : null),
      onOpened: opened => {
        result = opened;
        timeline.setData({ duration: opened.duration });
        $("result").hidden = false;
        $("formats").replaceChildren();
        tell(`Hearing ${file.name} …`, 0);
      },
      onEvent: event => {
        if (event.type === "transcript.text.segment") {
          transcript.add(event);
          timeline.setData({ segments: transcript.segments, words: transcript.words });
        }
        if (event.type === "audio_tags") sounds.addRow(event);
        if (event.type === "audio_event") events.push(event);
        if (event.type === "transcript.text.done") isDone = true;
        if (event.end) {
          const share = Math.min(1, event.end / result.duration);
          tell(`Hearing ${file.name}: ${clock(event.end)} of ${clock(result.duration)}`, share);
        }
      },
    });
    if (!isDone) throw new Error("The server broke off before the end.");
    const seconds = ((performance.now() - begun) / 1000).toFixed(1);
    await showResult(result, events);
    const language = kept?.language_name ? `, ${titled(kept.language_name)}` : "";
    tell(`${file.name}: ${clock(result.duration)}${language}, heard in ${seconds} s`, 1);
  } catch (error) {
    if (running !== control) return; // another one has begun
    $("work").hidden = error.name !== "AbortError";
    if (error.name === "AbortError") tell("Cancelled.", 1);
    else showError(error.message);
  } finally {
    if (running === control) {
      running = null;
      $("cancel").hidden = true;
      $("progress").hidden = true;
    }
  }
}

export function cancel() {
  running?.abort();
}

function tell(message, share) {
  $("status").textContent = message;
  $("progress").hidden = false;
  if (share === null) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

async function showResult({ id }, events) {
  sounds.setEvents(events);
  if (!id) return;
  kept = await getJson(`v1/results/${id}`);
  transcript.setLanguage(kept.language);
  const names = Object.entries(kept.label_languages).sort((a, b) => a[1].localeCompare(b[1]));
  const options = [new Option("the text's language", ""), ...names.map(([code, name]) => new Option(titled(name), code))];
  $("label-language").replaceChildren(...options);
  for (const option of document.querySelectorAll(".of-sounds")) option.hidden = option.disabled = !hasSounds;
  if (hasSounds) await sounds.load(id);
  downloads.offer(kept, () => (hasSounds ? sounds.query : {}));
}

/** Let the server forget the result that is shown. */
function forget() {
  if (kept) request(`v1/results/${kept.id}`, { method: "DELETE", keepalive: true }).catch(() => {});
  kept = null;
}

player.onTime((seconds, isPlaying) => {
  timeline.setTime(seconds, isPlaying);
  transcript.setTime(seconds, isPlaying);
  sounds.setTime(seconds);
});

addEventListener("pagehide", event => { if (!event.persisted) forget(); });
$("cancel").onclick = cancel;
$("copy").onclick = () => copy(transcript.text, $("copy"));
$("follow").onchange = () => { transcript.follows = $("follow").checked; };
$("zoom-in").onclick = () => timeline.zoom(0.5);
$("zoom-out").onclick = () => timeline.zoom(2);
$("zoom-fit").onclick = () => timeline.showAll();

$("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  const [file] = $("file").files;
  $("file").value = ""; // so that the same one can be chosen again
  if (file) hear(file);
};
addEventListener("paste", event => {
  const [file] = event.clipboardData.files;
  if (file) hear(file);
});
let depth = 0;
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(name, event => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    depth = name === "drop" ? 0 : depth + (name === "dragenter") - (name === "dragleave");
    $("drop").classList.toggle("over", depth > 0);
    if (name === "drop" && event.dataTransfer.files.length) hear(event.dataTransfer.files[0]);
  });
}
