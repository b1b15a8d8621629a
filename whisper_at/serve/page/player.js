// The player, and what follows its time.

import { $ } from "./dom.js";

const player = $("player");
const followers = [];
let url = null;

export function load(file) {
  if (url) URL.revokeObjectURL(url);
  url = URL.createObjectURL(file);
  player.classList.remove("has-picture");
  player.src = url;
}

/** Call follow(seconds, isPlaying) whenever the time changes: in every frame while it plays. */
export function onTime(follow) {
  followers.push(follow);
}

export const now = () => player.currentTime;
export const isLoaded = () => url !== null;

export function seek(seconds, plays = false) {
  player.currentTime = Math.max(0, Math.min(seconds, player.duration || seconds));
  if (plays) player.play().catch(() => {}); // a format that the browser cannot play can still be looked at
  tell();
}

export function toggle() {
  if (player.paused) player.play().catch(() => {});
  else player.pause();
}

function tell() {
  for (const follow of followers) follow(player.currentTime, !player.paused);
}

function onFrame() {
  tell();
  if (!player.paused && !player.ended) requestAnimationFrame(onFrame);
}

player.addEventListener("play", () => requestAnimationFrame(onFrame));
for (const name of ["timeupdate", "seeked", "pause"]) player.addEventListener(name, tell);
player.addEventListener("loadedmetadata", () => player.classList.toggle("has-picture", player.videoWidth > 0));
