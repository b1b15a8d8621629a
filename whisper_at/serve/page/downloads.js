// Files of a kept result, which the server writes as the command does.

import { request } from "./api.js";
import { $, make, save, showError } from "./dom.js";

const MEANINGS = {
  txt: "Text", vtt: "WebVTT", srt: "SubRip", tsv: "Table of segments", json: "All of it as JSON",
  labels: "Audacity", markers: "Reaper", premiere: "Premiere", lrc: "Lyrics", ass: "Subtitles (ASS)",
  "metadata.vtt": "WebVTT for scripts", sed: "Events (DCASE)", rttm: "Speech, music (RTTM)",
  "rows.csv": "Rows of tags", parquet: "Rows for pandas", png: "Picture", svg: "Picture (SVG)", pdf: "Picture (PDF)",
};

/**
 * Offer the files of a result.
 * @param result what the server tells of it
 * @param query returns threshold, classes and language as they are chosen
 */
export function offer(result, query) {
  const stem = result.filename.replace(/\.[^.]*$/, "") || "recording";
  $("formats").replaceChildren(...result.formats.map(({ name, extension }) => {
    const button = make("button", { className: "format" },
      make("b", { textContent: `.${extension}` }), make("span", { textContent: MEANINGS[name] ?? name }));
    button.dataset.format = name;
    button.onclick = async () => {
      showError("");
      button.disabled = true;
      try {
        const words = new URLSearchParams({ format: name });
        for (const [field, value] of Object.entries({ ...query(), captions: $("captions").value })) {
          if (value !== "") words.set(field, value);
        }
        const answer = await request(`v1/results/${result.id}/file?${words}`);
        save(await answer.blob(), `${stem}.${extension}`);
      } catch (error) {
        showError(error.message);
      } finally {
        button.disabled = false;
      }
    };
    return button;
  }));
}
