// Classes and events: a threshold, a search, and which classes have lanes.

import { getJson } from "./api.js";
import { $, clock, debounced, lastStarted, make, percent } from "./dom.js";

const MAX_LISTED = 100;
const HUES = [150, 275, 30, 200, 330];
const classId = (head, index) => `${head}/${index}`;

export class Sounds {
  /**
   * @param show called with the lanes to be shown
   * @param seek called with the seconds of an event that is clicked
   */
  constructor(show, seek) {
    Object.assign(this, { show, seek });
    this.reload = debounced(120, () => this.loadEvents().catch(() => {}));
    $("threshold").addEventListener("input", () => this.setThreshold(Number($("threshold").value) / 100));
    $("threshold-auto").addEventListener("click", () => this.setThreshold(null));
    $("label-language").addEventListener("change", () => this.load(this.id).catch(() => {}));
    $("class-search").addEventListener("input", () => this.listClasses());
    $("class-all").addEventListener("click", () => this.choose(null));
    this.clear();
  }

  clear() {
    this.id = null;
    this.heads = [];
    this.events = [];
    this.rows = new Map();
    this.chosen = null; // ids of classes; null for those that have events
    this.threshold = null;
    $("class-search").value = "";
    this.describeThreshold();
    $("sounds").hidden = true;
  }

  /** What downloads take over. */
  get query() {
    const audioset = this.chosen && [...this.chosen].filter(id => id.startsWith("audio_tag/"));
    return {
      p_threshold: this.threshold === null ? "" : Math.log(this.threshold / (1 - this.threshold)),
      include_classes: audioset?.length ? audioset.map(id => id.slice("audio_tag/".length)).join(";") : "",
      label_language: $("label-language").value,
    };
  }

  /** Add a row of tags that is heard while the rest still comes. */
  addRow({ head, start, end, tags }) {
    for (const { index, name, probability } of tags) {
      const id = classId(head, index);
      if (!this.rows.has(id)) this.rows.set(id, { head, index, name, hue: this.hue(head), events: [] });
      this.rows.get(id).events.push({ start, end, name, probability });
    }
    this.show([...this.rows.values()].slice(0, 20));
  }

  /** Take events as they come with the text, for a result that is not kept. */
  setEvents(events) {
    this.events = events;
    this.update();
  }

  /** Load what a kept result knows of sounds. */
  async load(id) {
    this.id = id;
    const language = { label_language: $("label-language").value };
    const [{ heads }] = await Promise.all([getJson(`v1/results/${id}/probabilities`, language), this.loadEvents(false)]);
    this.heads = heads;
    for (const { classes } of heads) {
      for (const one of classes) one.values = Uint8Array.from(atob(one.probabilities), letter => letter.charCodeAt(0));
    }
    this.update();
  }

  async loadEvents(updates = true) {
    const { p_threshold, label_language } = this.query, id = this.id;
    if (!id) return;
    const { events } = await getJson(`v1/results/${id}/events`, { p_threshold, label_language });
    if (id !== this.id) return;
    this.events = events;
    if (updates) this.update();
  }

  setThreshold(value) {
    this.threshold = value;
    this.describeThreshold();
    this.reload();
  }

  describeThreshold() {
    const isAuto = this.threshold === null;
    $("threshold-auto").setAttribute("aria-pressed", isAuto);
    $("threshold-value").textContent = isAuto ? "the head's own" : percent(this.threshold);
    if (!isAuto) $("threshold").value = Math.round(100 * this.threshold);
  }

  choose(ids) {
    this.chosen = ids?.size ? ids : null;
    this.update();
  }

  hue(head) {
    if (head === "audio_tag") return HUES[0];
    const heads = (this.heads.length ? this.heads.map(one => one.head) : ["audio_tag"]).filter(one => one !== "audio_tag");
    return HUES[1 + (Math.max(0, heads.indexOf(head)) % (HUES.length - 1))];
  }

  /** All classes that are known of, with their events: those that sound most come first. */
  get classes() {
    const found = new Map();
    for (const { head, seconds, classes } of this.heads) {
      for (const { index, name, values } of classes) {
        const id = classId(head, index);
        found.set(id, { id, head, index, name, hue: this.hue(head), seconds, probabilities: values, events: [], amount: 0 });
      }
    }
    for (const event of this.events) {
      const id = classId(event.head, event.index);
      if (!found.has(id)) found.set(id, { id, ...event, hue: this.hue(event.head), events: [], amount: 0 });
      const one = found.get(id);
      one.events.push(event);
      one.amount += event.probability * (event.end - event.start);
    }
    const loudest = one => one.amount || (one.probabilities ? one.probabilities.reduce((a, b) => Math.max(a, b), 0) / 1e6 : 0);
    return [...found.values()].map(one => ({ ...one, loudest: loudest(one) })).sort((a, b) => b.loudest - a.loudest);
  }

  update() {
    this.sorted = this.classes;
    $("sounds").hidden = !this.sorted.length;
    const lanes = this.sorted.filter(one => (this.chosen ? this.chosen.has(one.id) : one.events.length));
    const heads = [...new Set(lanes.map(lane => lane.head))];
    this.show(lanes.sort((a, b) => heads.indexOf(a.head) - heads.indexOf(b.head) || (a.events[0]?.start ?? 1e9) - (b.events[0]?.start ?? 1e9)));
    this.listClasses();
    this.listEvents();
  }

  listClasses() {
    const wanted = $("class-search").value.trim().toLocaleLowerCase();
    const found = this.sorted.filter(one => one.name.toLocaleLowerCase().includes(wanted)).slice(0, MAX_LISTED);
    const focused = document.activeElement?.dataset?.id;
    $("class-all").disabled = !this.chosen;
    $("classes").replaceChildren(...found.map(one => {
      const box = make("input", { type: "checkbox", checked: this.chosen?.has(one.id) ?? false });
      box.dataset.id = one.id;
      box.addEventListener("change", () => {
        const ids = new Set(this.chosen);
        ids[box.checked ? "add" : "delete"](one.id);
        this.choose(ids);
      });
      const head = one.head === "audio_tag" ? [] : [make("span", { className: "soft", textContent: one.head })];
      const count = make("span", { className: "soft", textContent: one.events.length || "" });
      return make("li", {}, make("label", { className: "check" }, box, make("span", { textContent: one.name, dir: "auto" }), ...head, count));
    }));
    if (focused) [...$("classes").querySelectorAll("input")].find(box => box.dataset.id === focused)?.focus();
  }

  listEvents() {
    const shown = this.events.filter(event => !this.chosen || this.chosen.has(classId(event.head, event.index)));
    this.listed = shown.slice(0, 500).map(event => {
      const times = `${clock(event.start, 1)} – ${clock(event.end, 1)}`;
      const button = make("button", { onclick: () => this.seek(event.start) },
        make("time", { textContent: times }), make("span", { textContent: event.name, dir: "auto" }),
        make("span", { className: "soft", textContent: percent(event.probability) }));
      return { ...event, button };
    });
    $("events").replaceChildren(...this.listed.map(event => make("li", {}, event.button)));
  }

  /** Light the events that are heard at a time. */
  setTime(seconds) {
    const last = lastStarted(this.listed ?? [], seconds);
    this.listed?.forEach((event, i) => event.button.classList.toggle("lit", i <= last && seconds < event.end));
  }
}
