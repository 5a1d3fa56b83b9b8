// The page: which policy is shown, the charts over time with one crosshair, and the tables below.

const data = JSON.parse(document.getElementById("data").textContent);
const shown = data.policies.filter((policy) => policy.series);
const bins = data.bin_s;
const count = data.arrivals.length;
const demand = data.arrivals.map((arrived, at) =>
  arrived / (Math.min(data.duration_s, (at + 1) * bins) - at * bins || bins));
const whole = { from: 0, to: data.duration_s };
const state = { policy: shown[0], from: 0, to: data.duration_s, at: null, isSame: true };
const byId = (id) => document.getElementById(id);
const charts = [];

function colour(pool) {
  const base = "var(--site-" + (pool.hue % 4) + ")";
  return pool.is_pale ? "color-mix(in oklab, " + base + " 55%, white)" : base;
}

function sayPool(pool) {
  return pool.site + " " + pool.accelerator + (pool.market === "owned" ? ", owned" :
    ", " + pool.market.replace("_", " "));
}

function capacity(series, pool) {
  return series.running[pool.name].map((running) => running * pool.rps);
}

function total(series) {
  return demand.map((_, at) =>
    data.pools.reduce((sum, pool) => sum + series.running[pool.name][at] * pool.rps, 0));
}

function highest(find) {
  const from = state.isSame ? shown : [state.policy];
  const values = from.flatMap((policy) => find(policy.series));
  return values.reduce((max, value) => Math.max(max, value || 0), 0);
}

function frame() {
  const first = Math.max(0, Math.floor(state.from / bins));
  const last = Math.min(count - 1, Math.ceil(state.to / bins) - 1);
  return { from: state.from, to: state.to, first, last: Math.max(first, last) };
}

// Each chart: its title, its key, its height, and how it is drawn into a group.
function listCharts(series) {
  const missedMax = highest((one) => one.missed) || 1;
  return [
    { title: "Demand and capacity", note: "requests a second; ▲ more replicas, ▼ fewer",
      keys: [key("demand", { "border-color": "var(--ink)" }, "stroke"),
        ...data.pools.map((pool) => key(sayPool(pool), { background: colour(pool) }))],
      height: 250, max: highest((one) => total(one).concat(demand)) * 1.08 || 1,
      marks: series.decisions, draw: drawCapacity },
    { title: "Rented nodes", note: "pale while booting; × lost; ◇ sold out when asked",
      keys: [], height: nodesHeight(series), draw: drawNodes, max: 1, ticks: [] },
    { title: "Waiting", note: "requests in the gateway's queue", keys: [], height: 90,
      max: highest((one) => one.waiting) || 1, draw: drawArea((one) => one.waiting) },
    { title: "Time to first token", note: "seconds, by arrival; logarithmic", isLog: true,
      keys: [key("p50", { "border-color": "var(--accent)" }, "stroke"),
        key("p99", { "border-color": "var(--site-3)" }, "stroke"),
        key("promise", { "border-color": "var(--bad)" }, "stroke dash")],
      height: 150, ...ttftRange(), draw: drawTtft },
    { title: "Missed the promise", note: "requests in " + saySpan(bins) +
      ", by arrival: late, refused or lost", keys: [], height: 80,
      max: missedMax, draw: drawMissed },
    { title: "Cloud $ an hour", note: "what the nodes there are cost", keys: [], height: 80,
      max: highest((one) => one.usd_per_hour) || 1, draw: drawArea((one) => one.usd_per_hour),
      say: sayUsdTick },
    { title: "Cloud $ so far", note: "the other policies pale", keys: [], height: 130,
      max: shown.reduce((max, policy) => Math.max(max, ...policy.series.usd.slice(-1)), 0) || 1,
      draw: drawSpent, say: sayUsdTick },
  ];
}

function ttftRange() {
  const high = Math.max(highest((one) => one.ttft_p99_s), data.ttft_s_max * 2);
  const known = shown.flatMap((policy) => policy.series.ttft_p50_s).filter((value) => value > 0);
  const low = known.reduce((min, value) => Math.min(min, value), data.ttft_s_max / 2);
  const ticks = [];
  const min = 10 ** Math.floor(Math.log10(Math.max(low, 0.001)));
  const max = 10 ** Math.ceil(Math.log10(high) - 0.001);
  for (let tick = min; tick <= max * 1.01; tick *= 10) ticks.push(Number(tick.toPrecision(1)));
  return { min, max, ticks };
}

function nodesHeight(series) {
  const lanes = packNodes(series).lanes;
  return Math.max(26, Math.min(220, lanes * 13)) + PAD.top;
}

function packNodes(series) {
  const lanes = packLanes(series.nodes.map((node) =>
    ({ from: node.asked_s, to: (node.ended_s ?? data.duration_s) + data.duration_s / 400 })));
  return { of: lanes, lanes: lanes.reduce((max, lane) => Math.max(max, lane + 1), 0) };
}

function drawCapacity(group, chart, scale, series) {
  let floor = demand.map(() => 0);
  for (const pool of data.pools) {
    const mine = capacity(series, pool);
    const top = floor.map((value, at) => value + mine[at]);
    if (mine.some((value) => value > 0)) {
      group.append(svg("path", { d: stepPath(bins, frame(), scale, top, floor),
        fill: colour(pool), stroke: "var(--card)", "stroke-width": 1 }));
    }
    floor = top;
  }
  group.append(svg("path", { class: "demand", d: linePath(bins, frame(), scale, demand) }));
}

function drawNodes(group, chart, scale, series) {
  const packed = packNodes(series);
  const step = (scale.plot.bottom - PAD.top) / Math.max(1, packed.lanes);
  const thick = Math.max(2, Math.min(10, step - 3));
  series.nodes.forEach((node, index) => {
    const end = Math.min(node.ended_s ?? state.to, state.to);
    if (end < state.from || node.asked_s > state.to) return;
    const y = PAD.top + packed.of[index] * step + (step - thick) / 2;
    const pool = data.pools.find((one) => one.site === node.site && (one.is_pale ===
      /spot/.test(node.type))) || data.pools.find((one) => one.site === node.site) || data.pools[0];
    const x = (at) => scale.x(Math.max(state.from, Math.min(state.to, at)));
    const up = node.joined_s ?? end;
    group.append(
      svg("rect", { x: x(node.asked_s), y, height: thick, rx: 2, fill: colour(pool), opacity: 0.35,
        width: Math.max(1, x(Math.min(up, end)) - x(node.asked_s)) }));
    if (node.joined_s !== null && node.joined_s < end) {
      group.append(svg("rect", { x: x(node.joined_s), y, height: thick, rx: 2, fill: colour(pool),
        width: Math.max(1, x(end) - x(node.joined_s)) }));
    }
    if (node.end === "lost" && node.ended_s <= state.to) {
      const at = x(node.ended_s);
      const half = thick / 2 + 1;
      const mid = y + thick / 2;
      group.append(svg("path", { class: "lost", d: "M" + (at - half) + " " + (mid - half) + "l" +
        2 * half + " " + 2 * half + "m0 " + -2 * half + "l" + -2 * half + " " + 2 * half }));
    }
  });
  for (const [at] of series.sold_out) {
    if (at < state.from || at > state.to) continue;
    const x = scale.x(at);
    group.append(svg("path", { class: "out", d: "M" + x + " 1l4 4l-4 4l-4 -4Z" }));
  }
  if (!series.nodes.length && !series.sold_out.length) {
    group.append(svg("text", { x: scale.plot.left, y: scale.plot.bottom - 8 },
      "none was launched"));
  }
}

function drawArea(find) {
  return (group, chart, scale, series) => {
    const values = find(series);
    group.append(
      svg("path", { d: stepPath(bins, frame(), scale, values, values.map(() => 0)),
        fill: "var(--accent)", opacity: 0.2 }),
      svg("path", { class: "line", d: stepPath(bins, frame(), scale, values),
        stroke: "var(--accent)" }));
  };
}

function drawTtft(group, chart, scale, series) {
  const y = scale.y(data.ttft_s_max);
  group.append(
    svg("path", { class: "promise", d: "M" + scale.plot.left + " " + y + "H" + scale.plot.right }),
    svg("path", { class: "line", stroke: "var(--site-3)",
      d: linePath(bins, frame(), scale, series.ttft_p99_s) }),
    svg("path", { class: "line", stroke: "var(--accent)",
      d: linePath(bins, frame(), scale, series.ttft_p50_s) }));
}

function drawMissed(group, chart, scale, series) {
  const { first, last } = frame();
  for (let at = first; at <= last; at += 1) {
    if (!series.missed[at]) continue;
    const from = scale.x(Math.max(state.from, at * bins));
    const to = scale.x(Math.min(state.to, (at + 1) * bins));
    const y = scale.y(series.missed[at]);
    group.append(svg("rect", { x: from, y, width: Math.max(1, to - from - 0.5),
      height: Math.max(1, scale.plot.bottom - y), fill: "var(--bad)" }));
  }
}

function drawSpent(group, chart, scale, series) {
  for (const policy of shown) {
    if (policy.series === series) continue;
    group.append(svg("path", { class: "line", stroke: "var(--axis)", "stroke-width": 1.5,
      d: stepPath(bins, frame(), scale, policy.series.usd) }, svg("title", {}, policy.name)));
  }
  group.append(svg("path", { class: "line", stroke: "var(--site-1)",
    d: stepPath(bins, frame(), scale, series.usd) }));
  const labels = shown.map((policy) => ({ policy, y: scale.y(policy.series.usd[frame().last]) }));
  labels.sort((a, b) => b.y - a.y);
  let last = Infinity;
  for (const { policy, y } of labels) {
    const at = Math.min(y - 4, last - 13);
    last = at;
    if (at < 0) continue;
    group.append(svg("text", { x: scale.plot.right, y: at, "text-anchor": "end",
      class: policy.series === series ? "strong" : "name" }, policy.name));
  }
}

function drawMarks(group, scale, decisions) {
  for (const decision of decisions) {
    if (decision.at_s < state.from || decision.at_s > state.to) continue;
    const change = decision.changes.reduce((sum, [, before, after]) => sum + after - before, 0);
    const x = scale.x(decision.at_s);
    group.append(svg("path", { class: "mark", d: change >= 0
      ? "M" + (x - 4.5) + " 8h9l-4.5 -8Z" : "M" + (x - 4.5) + " 0h9l-4.5 8Z" }));
  }
}

function drawChart(holder, chart, isDated) {
  const series = state.policy.series;
  const width = holder.clientWidth;
  const height = chart.height;
  const scale = makeScale(frame(), width, height, chart.min, chart.max, chart.isLog);
  const axis = isDated ? 24 : 0;
  const node = svg("svg", { height: height + PAD.bottom + axis, role: "img",
    viewBox: "0 0 " + width + " " + (height + PAD.bottom + axis),
    "aria-label": chart.title + " of " + state.policy.name });
  drawGrid(node, scale, chart.ticks || linearTicks(chart.max, height > 120 ? 5 : 3),
    chart.say || sayTickNumber);
  const group = svg("g", {});
  chart.draw(group, chart, scale, series);
  node.append(group);
  node.append(svg("line", { class: "base", x1: scale.plot.left, x2: scale.plot.right,
    y1: height + 0.5, y2: height + 0.5 }));
  if (chart.marks) drawMarks(node, scale, chart.marks);
  if (isDated) {
    for (const tick of timeTicks(state.from, state.to, Math.max(3, width / 110))) {
      node.append(svg("text", { x: scale.x(tick), y: height + 20, "text-anchor": "middle" },
        sayTick(tick)));
    }
  }
  const pick = svg("rect", { class: "pick", y: 0, height, width: 0 });
  const cross = svg("line", { class: "cross", y1: 0, y2: height, visibility: "hidden" });
  node.append(pick, cross);
  holder.append(node);
  charts.push({ node, scale, cross, pick });
  listen(node, scale);
}

function draw() {
  const holder = byId("charts");
  holder.replaceChildren();
  charts.length = 0;
  const list = listCharts(state.policy.series);
  list.forEach((chart, index) => {
    const figure = el("figure", {}, el("figcaption", {}, el("b", {}, chart.title),
      el("span", {}, chart.note), ...chart.keys));
    holder.append(figure);
    drawChart(figure, chart, index === 0 || index === list.length - 1);
  });
  byId("policy-name").textContent = state.policy.name;
  byId("whole").hidden = state.from === whole.from && state.to === whole.to;
  if (state.at !== null) moveTo(state.at, null);
}
