// Draws the charts of a report with BokehJS, from the numbers in the page, when they come into view.
"use strict";
const { charts, seen: tokens_seen } = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const light_colours = ["#3b63d8", "#d9622b", "#1d8a4a", "#9a3fb5", "#b8860b", "#0f8b8d", "#c2185b", "#5d6d7e"];
const dark_colours = ["#8aa8ff", "#ff9e64", "#7ad492", "#d79bf0", "#f0c060", "#63d2d4", "#ff8ab5", "#b0bec5"];
const choices = { x: "step", smoothing: 0 };
const drawn = new Map();

function smoothed(values) {
  let average = 0, weight = 0;
  return values.map((value) => {
    average = choices.smoothing * average + (1 - choices.smoothing) * value;
    weight = choices.smoothing * weight + (1 - choices.smoothing);
    return average / weight;
  });
}

// The tokens that the run had seen by a step: a straight line between those that were logged.
function tokens(step) {
  const { steps, tokens } = tokens_seen;
  const at = steps.findIndex((each) => each >= step);
  if (at < 0) return NaN;
  if (at === 0) return steps[0] === step ? tokens[0] : NaN;
  return tokens[at - 1] + (step - steps[at - 1]) / (steps[at] - steps[at - 1]) * (tokens[at] - tokens[at - 1]);
}

function numbers(line) {
  let x = choices.x === "time" && line.t.length ? line.t : line.x;
  if (choices.x === "tokens") x = line.x.map(tokens);
  return { x: x, y: choices.smoothing ? smoothed(line.y) : line.y, at: line.x, value: line.y };
}

function draw(place) {
  const chart = charts[Number(place.dataset.chart)];
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--quiet", "--line"].map((name) => style.getPropertyValue(name).trim());
  const colours = dark.matches ? dark_colours : light_colours;
  const figure = Bokeh.Plotting.figure({
    height: 250, sizing_mode: "stretch_width", tools: "pan,box_zoom,wheel_zoom,reset,save", active_drag: "box_zoom",
    x_axis_label: choices.x === "time" ? "seconds" : choices.x, background_fill_alpha: 0, border_fill_alpha: 0,
    outline_line_color: null, min_border_right: 12,
  });
  figure.toolbar.logo = null;
  figure.toolbar.autohide = true;
  for (const axis of [figure.xaxis, figure.yaxis]) {
    Object.assign(axis, {
      axis_label_text_color: text, major_label_text_color: text, axis_line_color: line, major_tick_line_color: line,
      minor_tick_line_color: null, axis_label_text_font_style: "normal",
    });
  }
  // Whole numbers as they are read aloud, and learning rates without an exponent as long as that is short.
  const form = choices.x === "tokens" ? "0.[00]a" : "0,0.[00]";
  figure.xaxis.formatter = new Bokeh.NumeralTickFormatter({ format: form });
  figure.yaxis.formatter = new Bokeh.BasicTickFormatter({ power_limit_low: -5, power_limit_high: 7 });
  figure.xgrid.grid_line_color = null;
  figure.ygrid.grid_line_color = line;
  const legend = place.nextElementSibling;
  legend.replaceChildren();
  const sources = chart.lines.map((each, number) => {
    const colour = colours[number % colours.length];
    const source = new Bokeh.ColumnDataSource({ data: numbers(each) });
    const glyphs = [figure.line({ field: "x" }, { field: "y" }, { source, line_color: colour, line_width: 2 })];
    if (each.x.length < 40) {
      glyphs.push(figure.scatter({ field: "x" }, { field: "y" }, { source, fill_color: colour, line_color: null, size: 5 }));
    }
    const entry = document.createElement("span"), mark = document.createElement("i");
    mark.style.background = colour;
    entry.append(mark, each.label);
    legend.append(entry);
    figure.add_tools(new Bokeh.HoverTool({
      renderers: glyphs.slice(-1), tooltips: [["step", "@at{0,0}"], ["value", "@value{0.[000000]}"]],
      mode: "vline", line_policy: "nearest",
    }));
    return source;
  });
  place.replaceChildren();
  Bokeh.Plotting.show(figure, place);
  drawn.set(place, { chart, sources, figure });
}

function redraw() {
  for (const place of drawn.keys()) draw(place);
}

const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".plot").forEach((place) => watcher.observe(place));
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach((place) => drawn.has(place) || draw(place)));
dark.addEventListener("change", redraw);
document.getElementById("x")?.addEventListener("change", (event) => { choices.x = event.target.value; redraw(); });
document.getElementById("smoothing")?.addEventListener("input", (event) => {
  choices.smoothing = Number(event.target.value);
  for (const { chart, sources } of drawn.values()) {
    sources.forEach((source, number) => { source.data = numbers(chart.lines[number]); });
  }
});
