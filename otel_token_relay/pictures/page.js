
"use strict";
const run = JSON.parse(document.getElementById("run").textContent);
const SVG = "http://www.w3.org/2000/svg";
const LABELS = {
  relayed: ["relayed", "the caller's token was sent"],
  exchanged: ["exchanged", "a token obtained for the destination was sent"],
  own: ["own", "the service's own token was sent"],
  withheld: ["withheld", "no token was added"],
  incoming: ["request", "a request from outside this recording"],
  undecided: ["no decision", "the span has none: the relay was off, or did not see the call"],
};
// If there are more lanes than FEW, their names are omitted. If there are more than MANY, their lines are also omitted.
const FEW = 6;
const MANY = 24;

function add(parent, name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function draw(parent, name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

// A name can be written from right to left, but it must not reorder the surrounding text.
function addName(parent, text) {
  return add(parent, "bdi", "", text);
}

function drawTip(picture, at, direction, outcome) {
  // The tip is in a nested SVG element so that its position can be a percentage.
  const tip = draw(picture, "svg", {x: at, y: "50%", overflow: "visible"});
  const shape = outcome === "withheld" ? "M-11 -5 L-1 5 M-11 5 L-1 -5" : "M-10 -5 L0 0 L-10 5 Z";
  draw(tip, "path", {class: "tip", d: shape, transform: `scale(${direction} 1)`});
}

function drawArrow(parent, lanes, hop) {
  const picture = draw(parent, "svg", {class: "arrow", "aria-hidden": "true", focusable: "false"});
  const center = lane => `${((lanes.indexOf(lane) + 0.5) / lanes.length * 100).toFixed(2)}%`;
  for (const lane of lanes.length <= MANY ? lanes : []) {
    draw(picture, "line", {class: "lane", x1: center(lane), x2: center(lane), y1: "-60%", y2: "160%"});
  }
  if (hop.from === hop.to) {
    const loop = draw(picture, "svg", {x: center(hop.from), y: "50%", overflow: "visible"});
    draw(loop, "path", {class: "hop", d: "M0 -9 H18 V0 H8"});
    drawTip(picture, center(hop.to), -1, hop.outcome);
  } else {
    draw(picture, "line", {class: "hop", x1: center(hop.from), x2: center(hop.to), y1: "50%", y2: "50%"});
    drawTip(picture, center(hop.to), lanes.indexOf(hop.to) > lanes.indexOf(hop.from) ? 1 : -1, hop.outcome);
  }
}

function addLegend(page) {
  const legend = add(page, "ul", "legend");
  legend.setAttribute("aria-label", "Legend");
  for (const [outcome, [label, meaning]] of Object.entries(LABELS)) {
    const count = run.counts[outcome] || 0;
    if (!count) continue;
    const item = add(legend, "li", outcome);
    const sample = draw(item, "svg", {"aria-hidden": "true", viewBox: "0 0 56 14"});
    draw(sample, "line", {class: "hop", x1: 0, x2: 50, y1: 7, y2: 7});
    const tip = draw(sample, "g", {transform: "translate(54 7)"});
    draw(tip, "path", {class: "tip", d: outcome === "withheld" ? "M-11 -5 L-1 5 M-11 5 L-1 -5" : "M-10 -5 L0 0 L-10 5 Z"});
    const words = add(item, "span");
    add(words, "b", "", label);
    words.append(` (${count.toLocaleString("en")}): ${meaning}`);
  }
}

function addServices(page) {
  const services = add(page, "ul", "services");
  services.setAttribute("aria-label", "Services");
  run.lanes.forEach((name, lane) => {
    const item = add(services, "li");
    add(item, "span", "number", String(lane + 1));
    addName(item, name);
  });
}

function addDetails(parent, hop) {
  const list = add(parent, "dl");
  const row = (label, text) => {
    if (!text) return;
    add(list, "dt", "", label);
    addName(add(list, "dd"), text);
  };
  const [meaning, advice] = Object.hasOwn(run.reasons, hop.reason) ? run.reasons[hop.reason] : ["", ""];
  row("Decision", `${LABELS[hop.outcome][0]}: ${LABELS[hop.outcome][1]}`);
  row("Reason", hop.reason);
  row("Meaning", meaning);
  row("What to do", advice);
  row(hop.reason === "destination_not_listed" ? "Origin" : "Entry", hop.entry);
  row("Exchange", hop.exchange);
  row("Span", hop.name);
  row("Time", `${hop.at} after the start of the trace, for ${hop.duration}`);
}

function addHop(list, lanes, hop, id) {
  const item = add(list, "li", hop.outcome);
  const button = add(item, "button");
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", id);
  const text = add(button, "span");
  const what = add(text, "span", "what");
  add(what, "span", "number", String(hop.from + 1));
  addName(what, run.lanes[hop.from]);
  what.append(" to ");
  add(what, "span", "number", String(hop.to + 1));
  addName(what, run.lanes[hop.to]);
  const decision = add(text, "span", "decision");
  add(decision, "b", "", LABELS[hop.outcome][0]);
  if (hop.reason && hop.reason !== hop.outcome) decision.append(": ", hop.reason);
  drawArrow(button, lanes, hop);
  const more = add(item, "div", "more");
  more.id = id;
  more.hidden = true;
  button.addEventListener("click", () => {
    if (!more.firstChild) addDetails(more, hop);
    more.hidden = !more.hidden;
    button.setAttribute("aria-expanded", String(!more.hidden));
  });
}

function addTrace(page, trace, place) {
  const lanes = [...new Set(trace.hops.flatMap(hop => [hop.from, hop.to]))].sort((a, b) => a - b);
  const section = add(page, "section", lanes.length <= FEW ? "few" : "many");
  section.setAttribute("aria-labelledby", `trace-${place}`);
  const head = add(section, "div", "head");
  const title = add(head, "h2", "", `Trace ${place + 1} of ${run.traces.length}`);
  title.id = `trace-${place}`;
  if (trace.user) {
    title.append(": called by ");
    addName(title, trace.user);
  }
  add(head, "p", "soft", trace.id);
  for (const note of trace.notes) add(head, "p", "soft", note);
  if (trace.hidden) add(head, "p", "soft", `${trace.hidden.toLocaleString("en")} more hops of this trace are not shown.`);
  const names = add(head, "ul", "lanes");
  names.setAttribute("aria-hidden", "true");
  for (const lane of lanes) {
    const item = add(names, "li");
    add(item, "span", "number", String(lane + 1));
    addName(item, run.lanes[lane]);
  }
  const list = add(section, "ol");
  list.setAttribute("aria-label", "Hops");
  trace.hops.forEach((hop, number) => addHop(list, lanes, hop, `hop-${place}-${number}`));
}

const page = document.getElementById("page");
add(page, "p", "", run.summary);
for (const note of run.notes) add(page, "p", "", note);
add(page, "p", "soft", "Select a hop to see the reason for its decision.");
addLegend(page);
addServices(page);
run.traces.forEach((trace, place) => addTrace(page, trace, place));
