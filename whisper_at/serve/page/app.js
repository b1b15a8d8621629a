// The page: tabs, the key, and what belongs to no part alone.

import { onKeyNeeded } from "./api.js";
import { $, showError } from "./dom.js";
import { timeline } from "./file.js";
import "./keyboard.js";
import "./live.js";
import { loadModels } from "./settings.js";

const TABS = ["file", "live"];

function openTab(name) {
  for (const other of TABS) {
    const isOpen = other === name;
    $(`tab-${other}`).setAttribute("aria-selected", isOpen);
    $(`tab-${other}`).tabIndex = isOpen ? 0 : -1;
    $(`${other}-panel`).hidden = !isOpen;
  }
  timeline.redraw();
}

for (const name of TABS) {
  $(`tab-${name}`).onclick = () => openTab(name);
  $(`tab-${name}`).onkeydown = event => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = TABS[(TABS.indexOf(name) + 1) % TABS.length];
    openTab(other);
    $(`tab-${other}`).focus();
  };
}

onKeyNeeded(wrong => new Promise(resolve => {
  const dialog = $("key-dialog");
  $("key-error").textContent = wrong;
  $("key").value = "";
  dialog.querySelector("form").onsubmit = event => {
    event.preventDefault();
    dialog.close($("key").value.trim());
  };
  $("key-cancel").onclick = () => dialog.close("");
  dialog.oncancel = () => { dialog.returnValue = ""; };
  dialog.onclose = () => resolve(dialog.returnValue || null);
  dialog.returnValue = "";
  dialog.showModal();
}));

addEventListener("themechange", () => timeline.redraw());
loadModels().catch(error => showError(error.message));
