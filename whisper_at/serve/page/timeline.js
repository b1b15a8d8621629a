// The timeline: what part of the recording is seen, and what mouse, fingers and keys do with it.

import { clock, lastStarted, percent } from "./dom.js";
import { draw, layout, measure } from "./drawing.js";

const MIN_SECONDS = 1;
const CLICK_PIXELS = 4;

export class Timeline {
  /**
   * @param canvas focusable, in a box with the tooltip
   * @param tooltip shows what is under the pointer
   * @param seek called with the seconds of a click
   */
  constructor(canvas, tooltip, seek) {
    Object.assign(this, { canvas, tooltip, seek });
    this.time = 0;
    this.pointers = new Map();
    this.setData({ duration: 0, peaks: null, segments: [], words: [], lanes: [] });
    new ResizeObserver(() => this.redraw()).observe(canvas.parentElement);
    canvas.addEventListener("wheel", event => this.onWheel(event), { passive: false });
    canvas.addEventListener("pointerdown", event => this.onDown(event));
    canvas.addEventListener("pointermove", event => this.onMove(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, event => this.onUp(event));
    canvas.addEventListener("pointerleave", () => { tooltip.hidden = true; });
  }

  /** Take what is to be seen: seconds, peaks, segments, words, and lanes {name, head, hue, events, seconds, probabilities}. */
  setData(data) {
    const isNew = data.duration !== undefined && data.duration !== this.data?.duration;
    this.data = { ...this.data, ...data };
    if (isNew) this.view = { start: 0, end: Math.max(this.data.duration, 0.1) };
    this.canvas.setAttribute("aria-valuemin", 0);
    this.canvas.setAttribute("aria-valuemax", this.data.duration.toFixed(1));
    this.redraw();
  }

  setTime(seconds, isPlaying) {
    this.time = seconds;
    const { start, end } = this.view;
    if (isPlaying && !this.pointers.size && (seconds < start || seconds > end)) this.show(seconds, end - start);
    this.canvas.setAttribute("aria-valuenow", seconds.toFixed(1));
    this.canvas.setAttribute("aria-valuetext", clock(seconds, 1));
    this.redraw();
  }

  /** Show so many seconds from a time on, as far as there are any. */
  show(start, seconds) {
    const length = Math.max(Math.min(MIN_SECONDS, this.data.duration), Math.min(seconds, this.data.duration)) || 0.1;
    start = Math.max(0, Math.min(start, this.data.duration - length));
    this.view = { start, end: start + length };
    this.redraw();
  }

  /** Zoom by a factor, about a time that stays where it is: that of the player if it is seen, else the middle. */
  zoom(factor, about = null) {
    const { start, end } = this.view;
    about ??= this.time > start && this.time < end ? this.time : (start + end) / 2;
    const length = Math.max(MIN_SECONDS, Math.min(this.data.duration, (end - start) * factor));
    this.show(about - ((about - start) * length) / (end - start), length);
  }

  showAll() {
    this.show(0, this.data.duration);
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (!this.canvas.parentElement.clientWidth) return; // it is hidden
      this.places = layout(this.data, this.canvas.parentElement.clientWidth);
      draw(this.canvas, this.places, this.data, this.view, this.time);
    });
  }

  // --- pointers ---

  secondsAt(x) {
    const { gutter, width } = this.places;
    return this.view.start + ((x - gutter) / (width - gutter)) * (this.view.end - this.view.start);
  }

  secondsPerPixel() {
    return (this.view.end - this.view.start) / (this.places.width - this.places.gutter);
  }

  onWheel(event) {
    const unit = event.deltaMode ? 30 : 1, isWhole = this.view.end - this.view.start >= this.data.duration;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY) || event.shiftKey) {
      event.preventDefault();
      const distance = (event.deltaX || event.deltaY) * unit;
      return this.show(this.view.start + distance * this.secondsPerPixel(), this.view.end - this.view.start);
    }
    if (event.deltaY > 0 && isWhole && !event.ctrlKey) return; // nothing is left to zoom out: the page scrolls
    event.preventDefault();
    const factor = Math.exp(Math.max(-60, Math.min(60, event.deltaY * unit)) * (event.ctrlKey ? 0.01 : 0.004));
    this.zoom(factor, this.secondsAt(event.offsetX));
  }

  onDown(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, from: event.offsetX, moved: false });
  }

  onMove(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return this.showTooltip(event.offsetX, event.offsetY);
    const distance = event.offsetX - pointer.x;
    if (Math.abs(event.offsetX - pointer.from) > CLICK_PIXELS) pointer.moved = true;
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
    if (others.length) {
      const [before, after] = [pointer.x, event.offsetX].map(x => Math.max(20, Math.abs(x - others[0].x)));
      for (const one of [pointer, ...others]) one.moved = true;
      this.zoom(before / after, this.secondsAt((event.offsetX + others[0].x) / 2));
    } else if (pointer.moved) {
      this.show(this.view.start - distance * this.secondsPerPixel(), this.view.end - this.view.start);
    }
    pointer.x = event.offsetX;
  }

  onUp(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (pointer && !pointer.moved && event.type === "pointerup" && event.offsetX >= this.places.gutter) {
      this.seek(this.secondsAt(event.offsetX));
    }
  }

  /** What is at a place: a time, and what is heard there. */
  describe(x, y) {
    const seconds = this.secondsAt(x), lane = this.data.lanes[Math.floor((y - this.places.lanes) / this.places.laneHeight)];
    if (y < this.places.lanes || !lane) {
      const words = this.data.words.length ? this.data.words : this.data.segments;
      const word = words[lastStarted(words, seconds)];
      return clock(seconds, 1) + (word && seconds <= word.end ? ` · ${word.text}` : "");
    }
    const event = lane.events.find(one => one.start <= seconds && seconds < one.end);
    const row = lane.probabilities?.[Math.floor(seconds / lane.seconds)];
    const probability = row === undefined ? event?.probability : row / 255;
    return [lane.name, clock(seconds, 1), ...(probability === undefined ? [] : [percent(probability)])].join(" · ");
  }

  showTooltip(x, y) {
    const { tooltip, places } = this;
    tooltip.hidden = !places || x < places.gutter || !this.data.duration;
    if (tooltip.hidden) return;
    tooltip.textContent = this.describe(x, y);
    const width = measure(this.canvas, tooltip.textContent) + 20;
    tooltip.style.left = `${Math.max(0, Math.min(x + 12, places.width - width))}px`;
    tooltip.style.top = `${y + 18}px`;
  }
}
