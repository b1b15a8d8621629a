// Draws the timeline: an axis, the waveform, what is said, and a lane for each class.

import { clock } from "./dom.js";
import { PEAKS_PER_SECOND } from "./waveform.js";

const FONT = "12px system-ui, sans-serif";
const AXIS = 22, WAVE = 64, TEXT = 26, NARROW = 560, GUTTER = 150, GAP = 6;
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const RIGHT_TO_LEFT = /^[^\p{L}]*[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}]/u;
const SHADES = 24;

/** Places in CSS pixels. */
export function layout(data, width) {
  const isNarrow = width < NARROW, laneHeight = isNarrow ? 32 : 22;
  const wave = AXIS, text = wave + (data.peaks ? WAVE + GAP : 0), lanes = text + TEXT + GAP;
  const gutter = isNarrow ? 0 : GUTTER;
  return { width, height: lanes + laneHeight * data.lanes.length + 2, gutter, isNarrow, laneHeight, wave, text, lanes };
}

export function measure(canvas, text) {
  const context = canvas.getContext("2d");
  context.font = FONT;
  return context.measureText(text).width;
}

export function draw(canvas, places, data, view, time) {
  const scale = devicePixelRatio || 1, { width, height, gutter } = places;
  const pixels = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d"), style = getComputedStyle(canvas);
  const colour = name => style.getPropertyValue(`--${name}`);
  const colours = Object.fromEntries(["ink", "soft", "lane", "wave", "speech", "accent"].map(n => [n, colour(n)]));
  const perSecond = (width - gutter) / (view.end - view.start);
  const painter = { context, places, data, view, colours, perSecond, x: seconds => gutter + (seconds - view.start) * perSecond };
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = FONT;
  context.textBaseline = "middle";
  drawLanes(painter, Number(style.getPropertyValue("--lightness")) || 50);
  clipped(context, gutter, 0, width - gutter, height, () => {
    drawAxis(painter);
    if (data.peaks) drawWave(painter, time);
    drawText(painter);
    const x = painter.x(time);
    context.fillStyle = colours.accent;
    context.fillRect(x - 1, AXIS - 4, 2, height - AXIS + 4);
  });
}

function clipped(context, x, y, width, height, paint) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  paint();
  context.restore();
}

function drawAxis({ context, places, view, colours, perSecond, x }) {
  const step = STEPS.find(seconds => seconds * perSecond > 70) ?? 14400;
  context.fillStyle = colours.soft;
  context.textAlign = "left";
  for (let i = Math.ceil(view.start / step); i * step <= view.end; i++) {
    const place = x(i * step);
    context.fillRect(place, AXIS - 6, 1, 4);
    if (place < places.width - 30) context.fillText(clock(i * step, step < 1 ? 1 : 0), place + (i ? 3 : 2), 9);
  }
}

function drawWave({ context, places, data, view, colours, perSecond }, time) {
  const middle = places.wave + WAVE / 2, perPixel = PEAKS_PER_SECOND / perSecond;
  for (let x = places.gutter; x < places.width; x++) {
    const seconds = view.start + (x - places.gutter) / perSecond, from = Math.floor(seconds * PEAKS_PER_SECOND);
    let peak = 0;
    for (let i = from; i < Math.max(from + 1, from + perPixel); i++) peak = Math.max(peak, data.peaks[i] ?? 0);
    const height = Math.max(1, peak * (WAVE - 4));
    context.fillStyle = seconds < time ? colours.accent : colours.wave;
    context.fillRect(x, middle - height / 2, 1, height);
  }
}

/** Boxes of segments or, where there is room for them, of words. */
function drawText({ context, places, data, view, colours, perSecond, x }) {
  const items = data.words.length && perSecond > 60 ? data.words : data.segments;
  for (const item of items) {
    if (item.end < view.start || item.start > view.end) continue;
    const left = x(item.start), width = Math.max(2, x(item.end) - left - 1), y = places.text;
    context.fillStyle = colours.speech;
    context.beginPath();
    context.roundRect(left, y, width, TEXT - 4, 4);
    context.fill();
    if (width < 14) continue;
    const isRtl = RIGHT_TO_LEFT.test(item.text);
    clipped(context, left, y, width, TEXT, () => {
      context.direction = isRtl ? "rtl" : "ltr";
      context.textAlign = isRtl ? "right" : "left";
      context.fillStyle = colours.ink;
      const edge = isRtl ? Math.min(left + width, places.width) - 5 : Math.max(left, places.gutter) + 5;
      context.fillText(item.text, edge, y + TEXT / 2 - 2);
    });
  }
}

function drawLanes({ context, places, data, view, colours, perSecond, x }, lightness) {
  const { gutter, width, laneHeight, isNarrow } = places;
  for (const [i, lane] of data.lanes.entries()) {
    const top = places.lanes + i * laneHeight, label = isNarrow ? 13 : 0, y = top + label, height = laneHeight - label - 3;
    context.fillStyle = colours.lane;
    context.fillRect(gutter, y, width - gutter, height);
    clipped(context, gutter, y, width - gutter, height, () => {
      if (lane.probabilities) drawProbabilities(context, lane, y, height - 5, places, view, perSecond, lightness);
      for (const event of lane.events) {
        if (event.end < view.start || event.start > view.end) continue;
        const share = lane.probabilities ? 1 : 0.35 + 0.65 * event.probability;
        context.fillStyle = `hsl(${lane.hue} 65% ${lightness}% / ${share})`;
        const place = lane.probabilities ? [y + height - 4, 4] : [y, height];
        context.fillRect(x(event.start), place[0], Math.max(2, (event.end - event.start) * perSecond), place[1]);
      }
    });
    context.fillStyle = colours.ink;
    context.direction = "inherit";
    context.textAlign = isNarrow ? "left" : "right";
    context.fillText(shortened(context, lane.name, isNarrow ? width : gutter - 12), isNarrow ? 2 : gutter - 8, isNarrow ? top + 7 : y + height / 2);
  }
}

/** The likelier, the darker: runs of pixels of one shade at once. */
function drawProbabilities(context, lane, y, height, places, view, perSecond, lightness) {
  const shadeAt = x => {
    const from = Math.floor((view.start + (x - places.gutter) / perSecond) / lane.seconds + 1e-9);
    const end = (view.start + (x + 1 - places.gutter) / perSecond) / lane.seconds;
    let highest = 0;
    for (let row = from; row < Math.max(from + 1, end); row++) highest = Math.max(highest, lane.probabilities[row] ?? 0);
    return Math.round((SHADES * highest) / 255);
  };
  let begun = places.gutter, shade = shadeAt(begun);
  for (let x = begun + 1; x <= places.width; x++) {
    const next = x < places.width ? shadeAt(x) : -1;
    if (next === shade) continue;
    context.fillStyle = `hsl(${lane.hue} 65% ${lightness}% / ${(0.85 * shade) / SHADES})`;
    if (shade) context.fillRect(begun, y, x - begun, height);
    [begun, shade] = [x, next];
  }
}

function shortened(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length && context.measureText(`${text.slice(0, length)}…`).width > width) length--;
  return `${text.slice(0, length)}…`;
}
