// Model, language, what is written, colours: what the user chooses, kept in this browser.

import { getJson } from "./api.js";
import { $, titled } from "./dom.js";

const THEMES = ["", "light", "dark"];
let models = [];

const model = () => models.find(one => one.id === $("model").value) ?? models[0];

/** The classes of the heads of the model that is chosen, by head. */
export const heads = () => model()?.heads ?? {};

/** The route and the fields of a request. */
export function chosen() {
  const knows = one => Object.keys(heads()).includes(one);
  return {
    task: $("task-label").hidden ? "transcriptions" : $("task").value,
    fields: {
      model: $("model").value,
      language: $("language").value,
      prompt: $("prompt").value.trim(),
      speech_gate: $("gate").checked && knows("audio_tag") ? "true" : "",
    },
  };
}

export async function loadModels() {
  models = (await getJson("v1/models")).data;
  $("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  restore("model");
  showModel();
}

/** Offer what a model can do. */
function showModel() {
  const { languages } = model(), names = Object.entries(languages).sort((a, b) => a[1].localeCompare(b[1]));
  const isMultilingual = names.length > 1;
  const options = names.map(([code, name]) => new Option(titled(name), code));
  $("language").replaceChildren(...(isMultilingual ? [new Option("detect", "")] : []), ...options);
  $("task-label").hidden = !isMultilingual;
  $("gate-label").hidden = !("audio_tag" in heads());
  restore("language");
}

function restore(id) {
  const value = localStorage.getItem(`whisper_at.${id}`);
  if ([...$(id).options].some(option => option.value === value)) $(id).value = value;
}

for (const id of ["model", "language"]) {
  $(id).addEventListener("change", () => localStorage.setItem(`whisper_at.${id}`, $(id).value));
}
$("model").addEventListener("change", showModel);

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").title = `Colours: ${theme || "as the system's"}`;
  dispatchEvent(new Event("themechange"));
}

$("theme").onclick = () => {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const order = isDark ? ["", "light", "dark"] : ["", "dark", "light"];
  const next = order[(order.indexOf(document.documentElement.dataset.theme) + 1) % order.length];
  localStorage.setItem("whisper_at.theme", next);
  setTheme(next);
};
const stored = localStorage.getItem("whisper_at.theme");
setTheme(THEMES.includes(stored) ? stored : "");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));
