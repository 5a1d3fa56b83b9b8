// Reading the charts: the crosshair with its words, by pointer and by keys, the tables, the start.

function decisionsIn(series, at) {
  return series.decisions.filter((one) => Math.min(count - 1, Math.floor(one.at_s / bins)) === at);
}

function sayChange(decision) {
  return decision.changes.map(([pool, before, after]) => pool + " " + before + " → " + after)
    .join(", ");
}

function listValues(series, at) {
  const rows = [["demand", sayNumber(demand[at]) + " a second"],
    ["capacity", sayNumber(total(series)[at]) + " a second"]];
  for (const pool of data.pools) {
    const running = series.running[pool.name][at];
    const coming = series.planned[pool.name][at] - running;
    if (running || coming > 0) {
      rows.push([sayPool(pool), running + (coming > 0 ? " + " + coming + " starting" : "")]);
    }
  }
  rows.push(["streams", sayNumber(series.streams[at])], ["waiting", sayNumber(series.waiting[at])],
    ["first token p50, p99", saySeconds(series.ttft_p50_s[at]) + ", " +
      saySeconds(series.ttft_p99_s[at])],
    ["missed the promise", series.missed[at] + " of " + data.arrivals[at]],
    ["cloud", sayUsd(series.usd_per_hour[at]) + " an hour, " + sayUsd(series.usd[at]) + " so far"]);
  return rows;
}

function saySeconds(value) {
  return value === null ? "-" : value.toFixed(2) + " s";
}

// What was decided in a bin; where nothing was, why things were held.
function listReasons(series, at) {
  const found = decisionsIn(series, at);
  if (found.length) {
    return found.map((one) =>
      ({ title: sayTime(one.at_s) + "  " + sayChange(one), why: one.why.map(textOf(series)) }));
  }
  for (let back = at; back >= 0; back -= 1) {
    if (series.holds[back]) {
      return [{ title: "Nothing changed", why: series.holds[back].map(textOf(series)) }];
    }
  }
  return [];
}

function textOf(series) {
  return (index) => series.texts[index];
}

function listTurns(series, at) {
  const isHere = (time) => time !== null && Math.floor(time / bins) === at;
  const words = { lost: "lost", home: "sent home" };
  return series.nodes.flatMap((node) => [
    isHere(node.asked_s) ? node.id + " asked for" : null,
    isHere(node.joined_s) ? node.id + " joined" : null,
    isHere(node.ended_s) ? node.id + " " + (words[node.end] || "ended") : null,
  ]).concat(series.sold_out.map(([time, type]) =>
    (isHere(time) ? type + " asked for, sold out" : null))).filter(Boolean);
}

function moveTo(at, pointer) {
  const series = state.policy.series;
  state.at = Math.max(0, Math.min(count - 1, at));
  const middle = (state.at + 0.5) * bins;
  const isInside = middle >= state.from && middle <= state.to;
  for (const { cross, scale } of charts) {
    const x = scale.x(Math.min(middle, data.duration_s));
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    cross.setAttribute("visibility", isInside ? "visible" : "hidden");
  }
  const values = listValues(series, state.at);
  const reasons = listReasons(series, state.at);
  const turns = listTurns(series, state.at);
  showTip(values, reasons, turns, pointer);
  if (pointer === null) {
    byId("readout").textContent = sayTime(state.at * bins) + ". " +
      values.map((row) => row.join(" ")).join("; ") + ". " +
      reasons.map((one) => one.title + ": " + one.why.join("; ")).join(". ");
  }
}

function showTip(values, reasons, turns, pointer) {
  const tip = byId("tip");
  const parts = reasons.map(({ title, why }) => el("div", { class: "reason" },
    el("h3", {}, title), ...why.slice(0, 6).map((text) => el("p", {}, text))));
  if (turns.length) {
    parts.push(el("div", { class: "reason" }, ...turns.slice(0, 6).map((text) =>
      el("p", {}, text))));
  }
  const table = el("table", {}, el("tbody", {}, ...values.map((row) =>
    el("tr", {}, ...row.map((text) => el("td", {}, text))))));
  tip.replaceChildren(el("h3", {}, sayTime(state.at * bins) + " to " +
    sayTime(Math.min(data.duration_s, (state.at + 1) * bins))), table, ...parts);
  tip.hidden = false;
  const box = byId("charts").getBoundingClientRect();
  const x = pointer ? pointer.clientX
    : box.left + charts[0].scale.x(Math.min((state.at + 0.5) * bins, data.duration_s));
  const y = pointer ? pointer.clientY : Math.max(20, box.top + 40);
  const left = x + 18 + tip.offsetWidth > innerWidth - 8 ? x - 18 - tip.offsetWidth : x + 18;
  tip.style.left = Math.max(8, left) + "px";
  tip.style.top = Math.max(8, Math.min(y - 20, innerHeight - tip.offsetHeight - 8)) + "px";
}

function leave() {
  byId("tip").hidden = true;
  state.at = null;
  for (const { cross } of charts) cross.setAttribute("visibility", "hidden");
}

function listen(node, scale) {
  const at = (event) => {
    const x = event.clientX - node.getBoundingClientRect().left;
    return Math.max(state.from, Math.min(state.to, scale.time(x)));
  };
  let begin = null;
  node.addEventListener("pointermove", (event) => {
    moveTo(findBin(scale, at(event)), event);
    if (begin !== null) mark(begin, at(event));
  });
  node.addEventListener("pointerleave", () => { if (begin === null) leave(); });
  node.addEventListener("pointerdown", (event) => {
    begin = at(event);
    node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointerup", (event) => {
    const from = Math.min(begin, at(event));
    const to = Math.max(begin, at(event));
    begin = null;
    mark(0, 0);
    if (to - from >= 2 * bins) zoom(from, to);
  });
  node.addEventListener("pointercancel", () => { begin = null; mark(0, 0); });
}

// The bin at a time; near a decision that decision's, which may be narrower than a pointer's aim.
function findBin(scale, time) {
  const near = state.policy.series.decisions.map((one) =>
    ({ at_s: one.at_s, away: Math.abs(scale.x(one.at_s) - scale.x(time)) }))
    .reduce((best, one) => (one.away < best.away ? one : best), { at_s: time, away: 5 });
  return Math.floor(Math.min(near.at_s, data.duration_s - 0.001) / bins);
}

function mark(from, to) {
  for (const { pick, scale } of charts) {
    pick.setAttribute("x", scale.x(Math.min(from, to)));
    pick.setAttribute("width", Math.max(0, scale.x(Math.max(from, to)) - scale.x(Math.min(from, to))));
  }
}

function zoom(from, to) {
  state.from = Math.floor(from / bins) * bins;
  state.to = Math.min(data.duration_s, Math.ceil(to / bins) * bins);
  draw();
}

function nextDecision(from, isBack) {
  const places = state.policy.series.decisions.map((one) => Math.floor(one.at_s / bins));
  return isBack ? places.findLast((at) => at < from) : places.find((at) => at > from);
}

function onKey(event) {
  const at = state.at ?? -1;
  const jump = event.shiftKey ? 10 : 1;
  const moves = {
    ArrowRight: () => at + jump, ArrowLeft: () => (at < 0 ? count - 1 : at - jump),
    Home: () => 0, End: () => count - 1,
    d: () => nextDecision(at, false), D: () => nextDecision(at < 0 ? count : at, true),
  };
  if (event.key === "Escape") {
    leave();
    zoom(whole.from, whole.to);
  } else if (moves[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const next = moves[event.key]();
    if (next !== undefined) moveTo(next, null);
    event.preventDefault();
  }
}

function fillTable(table, heads, rows) {
  table.replaceChildren(
    el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col" }, text)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells))));
}

function fillDecisions() {
  const series = state.policy.series;
  byId("decisions-note").textContent = series.decisions.length + " changes by " +
    state.policy.name + (series.decisions.some((one) => one.why.length) ? "" :
    series.decisions.length ? "; this policy gives no reasons" : "");
  fillTable(byId("decisions-table"), ["Time", "Replicas", "Why"], series.decisions.map((one) => {
    const go = el("button", { class: "when", type: "button" }, sayTime(one.at_s));
    go.addEventListener("click", () => {
      byId("charts").focus({ preventScroll: true });
      byId("timeline").scrollIntoView();
      if (one.at_s < state.from || one.at_s > state.to) zoom(whole.from, whole.to);
      moveTo(Math.floor(one.at_s / bins), null);
    });
    const why = one.why.map((index) => el("div", {}, series.texts[index]));
    return [el("td", {}, go), el("td", { class: "change" }, sayChange(one)),
      el("td", { class: "why" }, ...why)];
  }));
}

function fillNodes() {
  const { nodes } = state.policy.series;
  const usd = nodes.reduce((sum, node) => sum + node.usd, 0);
  byId("nodes-note").textContent = nodes.length + " nodes, " + sayUsd(usd) + " in all";
  const words = { lost: "lost", home: "sent home" };
  const time = (at) => (at === null ? "-" : sayTime(at));
  fillTable(byId("nodes-table"), ["Node", "Type", "Asked", "Joined", "Ended", "How", "$"],
    nodes.map((node) => [node.id, node.type, time(node.asked_s), time(node.joined_s),
      time(node.ended_s), words[node.end] || "still there", sayUsd(node.usd)]
      .map((text) => el("td", {}, text))));
}

// What each policy keeps against what it costs: the upper left corner is where one wants to be.
function drawTradeoff() {
  const figure = byId("tradeoff");
  if (data.policies.length < 2) return;
  figure.hidden = false;
  const width = 340;
  const height = 250;
  const box = { left: 46, right: width - 14, top: 14, bottom: height - 34 };
  const usdMax = Math.max(...data.policies.map((one) => one.cloud_usd)) * 1.08 || 1;
  const low = Math.min(...data.policies.map((one) => one.slo_attainment));
  const floor = Math.max(0, Math.floor((low - 0.02) * 20) / 20);
  const x = (usd) => box.left + (usd / usdMax) * (box.right - box.left);
  const y = (met) => box.bottom - ((met - floor) / (1 - floor)) * (box.bottom - box.top);
  const node = svg("svg", { viewBox: "0 0 " + width + " " + height, role: "img",
    "aria-label": "Share of requests that met the promise against cloud dollars, by policy" });
  const step = niceStep(1 - floor, 4);
  for (let met = 1; met >= floor - 0.0001; met -= step) {
    node.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(met), y2: y(met) }),
      svg("text", { x: box.left - 7, y: y(met) + 4, "text-anchor": "end" },
        Number((met * 100).toFixed(1)) + "%"));
  }
  for (const tick of linearTicks(usdMax, 4)) {
    node.append(svg("text", { x: x(tick), y: box.bottom + 16, "text-anchor": "middle" },
      sayUsdTick(tick)));
  }
  node.append(svg("text", { x: (box.left + box.right) / 2, y: height - 3, "text-anchor": "middle",
    class: "name" }, "cloud $"));
  const dots = svg("g", {});
  node.append(dots);
  const placed = [];
  const isShown = (policy) => policy.name === state.policy?.name;
  const order = [...data.policies].sort((a, b) => isShown(b) - isShown(a));
  for (const policy of order) {
    const px = x(policy.cloud_usd);
    const py = y(policy.slo_attainment);
    const isLeft = px > box.left + (box.right - box.left) * 0.55;
    const long = policy.name.length * 6.4;
    const from = isLeft ? px - 9 - long : px + 9;
    const isFree = (ty) => ty > box.top && ty < box.bottom && !placed.some((one) =>
      Math.abs(one.y - ty) < 12 && from < one.to && one.from < from + long);
    const ty = [py + 4, py - 8, py + 16].find(isFree);
    dots.append(svg("circle", { class: "dot", cx: px, cy: py, r: isShown(policy) ? 6 : 5,
      fill: isShown(policy) ? "var(--accent)" : "var(--ink-3)" }, svg("title", {}, policy.name)));
    placed.push({ y: py + 4, from: px - 6, to: px + 6 });
    if (ty === undefined) continue;
    placed.push({ y: ty, from, to: from + long });
    node.append(svg("text", { x: isLeft ? px - 9 : px + 9, y: ty, "text-anchor":
      isLeft ? "end" : "start", class: isShown(policy) ? "strong" : "name" }, policy.name));
  }
  figure.replaceChildren(el("figcaption", {}, el("b", {}, "SLO met against cloud $")), node);
}

function choose(name) {
  const found = shown.find((policy) => policy.name === name);
  if (!found) return;
  state.policy = found;
  draw();
  drawTradeoff();
  fillDecisions();
  fillNodes();
}

function start() {
  for (const input of document.querySelectorAll("input[name=policy]")) {
    input.checked = shown.length > 0 && input.value === state.policy.name;
    input.addEventListener("change", () => choose(input.value));
  }
  if (!shown.length) return;
  for (const id of ["timeline", "decisions", "nodes"]) byId(id).hidden = false;
  byId("same-scales").addEventListener("change", (event) => {
    state.isSame = event.target.checked;
    draw();
  });
  byId("whole").addEventListener("click", () => zoom(whole.from, whole.to));
  const area = byId("charts");
  area.addEventListener("keydown", onKey);
  area.addEventListener("blur", leave);
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) < 1) return;
    width = entry.contentRect.width;
    draw();
  }).observe(area);
  choose(state.policy.name);
}

start();
