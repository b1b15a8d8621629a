// What keys do, where nothing that takes keys itself has the focus.

import { $ } from "./dom.js";
import { timeline, transcript } from "./file.js";
import * as player from "./player.js";

const by = seconds => () => player.seek(player.now() + seconds);
const to = (kind, step) => () => player.seek(transcript.neighbour(kind, player.now(), step));
const KEYS = {
  " ": player.toggle, k: player.toggle, j: by(-10), l: by(10), ArrowLeft: by(-5), ArrowRight: by(5),
  ",": to("words", -1), ".": to("words", 1), ArrowUp: to("segments", -1), ArrowDown: to("segments", 1),
  "+": () => timeline.zoom(0.5), "=": () => timeline.zoom(0.5), "-": () => timeline.zoom(2), "−": () => timeline.zoom(2),
  0: () => timeline.showAll(), Home: () => player.seek(0), End: () => player.seek(timeline.data.duration),
  "/": () => $("class-search").focus(),
};
const NEEDS_FOCUS = ["ArrowUp", "ArrowDown", "Home", "End"]; // else they scroll

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const { target } = event;
  if (target.closest("input, select, textarea, summary, [role=tab]") && !(event.key === "Escape")) return;
  if (event.key === "Escape") return target.blur();
  if (event.key === "?") return $("help-dialog").showModal();
  const isButton = target.closest("button, a"), isPlayer = target === $("player");
  if ((isButton && event.key === " ") || isPlayer) return;
  if (!player.isLoaded() || $("file-panel").hidden || $("result").hidden || !(event.key in KEYS)) return;
  if (NEEDS_FOCUS.includes(event.key) && target !== $("timeline") && target !== $("text")) return;
  event.preventDefault();
  KEYS[event.key]();
});

$("help").onclick = () => $("help-dialog").showModal();
$("help-close").onclick = () => $("help-dialog").close();
