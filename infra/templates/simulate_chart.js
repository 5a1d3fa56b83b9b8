"use strict";
// What charts are made of: elements, scales, ticks, words for numbers. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const PAD = { left: 58, right: 16, top: 8, bottom: 6 };

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function niceStep(span, count) {
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((step) => step * power >= rough) || 10);
}

function linearTicks(max, count) {
  const step = niceStep(max, count);
  const ticks = [];
  for (let at = 0; at <= max * 1.0001; at += step) ticks.push(at);
  return ticks;
}

const TIME_STEPS_S = [10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
  86400, 172800, 604800];

function timeTicks(from, to, count) {
  const step = TIME_STEPS_S.find((one) => (to - from) / one <= count) || 604800;
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push(at);
  return ticks;
}

function two(number) {
  return String(number).padStart(2, "0");
}

// h:mm:ss from the start of the trace; days in front where there are any.
function sayTime(at) {
  const s = Math.round(at);
  const days = Math.floor(s / 86400);
  const text = Math.floor((s % 86400) / 3600) + ":" + two(Math.floor((s % 3600) / 60)) + ":" +
    two(s % 60);
  return days ? days + "d " + text : text;
}

function sayTick(at) {
  return at % 60 === 0 ? sayTime(at).replace(/:00$/, "") : sayTime(at);
}

function sayNumber(value) {
  if (value === null || value === undefined) return "none";
  const size = Math.abs(value);
  const digits = size >= 100 || Number.isInteger(value) ? 0 : size >= 10 ? 1 : 2;
  return value.toLocaleString("en-US", { minimumFractionDigits: digits,
    maximumFractionDigits: digits });
}

function sayUsd(value) {
  const digits = value >= 1000 ? 0 : 2;
  return "$" + value.toLocaleString("en-US", { minimumFractionDigits: digits,
    maximumFractionDigits: digits });
}

function sayUsdTick(value) {
  return sayUsd(value).replace(/\.00$/, "");
}

function sayTickNumber(value) {
  return String(Number(value.toPrecision(3)));
}

function saySpan(seconds) {
  return seconds % 60 === 0 ? seconds / 60 + " min" : seconds + " s";
}

// One chart's area: x is time, y a value, linear from 0 or logarithmic.
function makeScale(frame, width, height, yMin, yMax, isLog) {
  const plot = { left: PAD.left, right: width - PAD.right, top: PAD.top, bottom: height };
  const span = frame.to - frame.from;
  return {
    plot,
    x: (at) => plot.left + ((at - frame.from) / span) * (plot.right - plot.left),
    time: (x) => frame.from + ((x - plot.left) / (plot.right - plot.left)) * span,
    y(value) {
      const share = isLog
        ? (Math.log(Math.max(value, yMin)) - Math.log(yMin)) / (Math.log(yMax) - Math.log(yMin))
        : value / yMax;
      return plot.bottom - Math.max(0, Math.min(1.02, share)) * (plot.bottom - plot.top);
    },
  };
}

function drawGrid(node, scale, ticks, say) {
  for (const tick of ticks) {
    const y = Math.round(scale.y(tick)) + 0.5;
    node.append(
      svg("line", { class: "grid", x1: scale.plot.left, x2: scale.plot.right, y1: y, y2: y }),
      svg("text", { x: scale.plot.left - 8, y: y + 4, "text-anchor": "end" }, say(tick)));
  }
}

// Values that hold from their bin's start to the next one's, as a path; between two rows an area.
function stepPath(bins, frame, scale, values, floor) {
  const line = (list, isBack) => {
    const points = [];
    for (let at = frame.first; at <= frame.last; at += 1) {
      const y = scale.y(list[at]).toFixed(1);
      const from = scale.x(Math.max(frame.from, at * bins)).toFixed(1);
      const to = scale.x(Math.min(frame.to, (at + 1) * bins)).toFixed(1);
      points.push(from + " " + y, to + " " + y);
    }
    return (isBack ? points.reverse() : points).join("L");
  };
  return "M" + line(values, false) + (floor ? "L" + line(floor, true) + "Z" : "");
}

// Values in the middle of their bins as a line with gaps where there is none.
function linePath(bins, frame, scale, values) {
  let path = "";
  let isOpen = false;
  for (let at = frame.first; at <= frame.last; at += 1) {
    const value = values[at];
    if (value === null || value === undefined) {
      isOpen = false;
      continue;
    }
    const x = scale.x(Math.min(frame.to, Math.max(frame.from, (at + 0.5) * bins)));
    path += (isOpen ? "L" : "M") + x.toFixed(1) + " " + scale.y(value).toFixed(1);
    isOpen = true;
  }
  return path;
}

function key(text, style, kind) {
  const swatch = el("i", { class: kind || "" });
  for (const [name, value] of Object.entries(style)) swatch.style.setProperty(name, value);
  return el("span", { class: "key" }, swatch, text);
}

// Puts nodes side by side in as few lanes as they fit: the lane of each, by index.
function packLanes(spans) {
  const ends = [];
  return spans.map(({ from, to }) => {
    let lane = ends.findIndex((end) => end <= from);
    if (lane < 0) lane = ends.length;
    ends[lane] = to;
    return lane;
  });
}
