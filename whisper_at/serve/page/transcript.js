// The text: segments whose words are lit while they are heard, and play when they are clicked.

import { clock, lastStarted, make } from "./dom.js";

export class Transcript {
  /**
   * @param box the element that shows it
   * @param seek called with the seconds of what is clicked
   */
  constructor(box, seek) {
    this.box = box;
    this.follows = true;
    this.clear();
    box.addEventListener("click", event => {
      const part = event.target.closest("[data-start]");
      if (part && getSelection().isCollapsed) seek(Number(part.dataset.start));
    });
  }

  clear() {
    this.segments = [];
    this.words = [];
    this.lit = null;
    this.litSegment = null;
    this.box.replaceChildren();
  }

  get text() {
    return this.segments.map(segment => segment.text).join("\n");
  }

  /** Add a segment: start, end, text and, if they are timed, words. */
  add(segment) {
    const line = make("p", { dir: "auto" });
    const words = segment.words?.length ? segment.words : [{ ...segment, word: segment.text }];
    for (const word of words) {
      const text = word.word.trimStart(), span = make("span", { className: "word", textContent: text });
      span.dataset.start = word.start;
      if (word.probability < 0.5) span.classList.add("doubtful");
      if (text.length < word.word.length) line.append(" ");
      line.append(span);
      this.words.push({ start: word.start, end: word.end, text: word.word.trim(), span });
    }
    const time = make("button", { className: "time", textContent: clock(segment.start) });
    time.dataset.start = segment.start;
    time.setAttribute("aria-label", `Play from ${clock(segment.start)}`);
    const row = make("div", { className: "segment" }, time, line);
    this.segments.push({ ...segment, row });
    this.box.append(row);
  }

  setLanguage(code) {
    this.box.lang = code;
  }

  /** Light the word and the segment of a time. */
  setTime(seconds, isPlaying) {
    const word = this.words[lastStarted(this.words, seconds)];
    const lit = word && seconds < word.end + 0.2 ? word.span : null;
    if (lit !== this.lit) {
      this.lit?.classList.remove("lit");
      lit?.classList.add("lit");
      this.lit = lit;
    }
    const segment = this.segments[lastStarted(this.segments, seconds)]?.row ?? null;
    if (segment !== this.litSegment) {
      this.litSegment?.classList.remove("lit");
      segment?.classList.add("lit");
      this.litSegment = segment;
      if (segment && isPlaying && this.follows) this.scrollTo(segment);
    }
  }

  /** Scroll the box, and only the box, so that a segment is in its middle. */
  scrollTo(segment) {
    const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
    this.box.scrollTo({ top: segment.offsetTop - (this.box.clientHeight - segment.offsetHeight) / 2, behavior });
  }

  /** The start of the word or segment that is `step` places after the one at a time. */
  neighbour(kind, seconds, step) {
    const items = this[kind], place = lastStarted(items, seconds + 0.01) + step;
    return items.length ? items[Math.max(0, Math.min(items.length - 1, place))].start : seconds;
  }
}
