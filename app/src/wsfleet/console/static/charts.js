/* Charts of the last minutes, drawn by uPlot. The legend is text beside the chart, with the newest values. */
import uPlot from "./vendor/uPlot.js";
import { $, colour, keep, make, number, setText } from "./dom.js";

const SHORTEST = 180; // the shortest span of a chart, in seconds
const MOST_LINES = 8; // more nodes become one line

const dark = matchMedia("(prefers-color-scheme: dark)");
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

class Chart {
  #plot = null;
  #shape = "";

  constructor(name, digits = 0) {
    this.box = $(`chart-${name}`);
    this.legend = $(`legend-${name}`);
    this.digits = digits;
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(this.box);
    dark.addEventListener("change", () => (this.#shape = ""));
  }

  /** `lines` is a list of [name, values]. */
  draw(time, lines) {
    const shape = JSON.stringify(lines.map(([name]) => name));
    const data = [time, ...lines.map(([, values]) => values)];
    if (shape !== this.#shape) {
      this.#shape = shape;
      this.#plot?.destroy();
      this.#plot = new uPlot(this.#options(lines), data, this.box);
    } else {
      this.#plot.setData(data);
    }
    keep(this.legend, lines, ([name]) => name, ([name]) => {
      const value = make("strong");
      const swatch = make("span", { className: "swatch", ariaHidden: "true" });
      const item = make("li", {}, swatch, `${name} `, value);
      item.update = (values, index) => {
        swatch.style.setProperty("--swatch", colour(index));
        setText(value, number(values.at(-1), this.digits));
      };
      return item;
    }, (item, [, values], index) => item.update(values, index));
    this.box.ariaLabel = `Now: ${lines.map(([name, values]) => `${name} ${number(values.at(-1), this.digits)}`).join(", ")}`;
  }

  #size() {
    return { width: this.box.clientWidth, height: this.box.clientHeight };
  }

  #options(lines) {
    const style = getComputedStyle(document.documentElement);
    const variable = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: variable("--muted"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: variable("--line"), width: 1 },
      ticks: { show: false },
    };
    return {
      ...this.#size(),
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { range: (_, first, last) => [Math.min(first ?? last, last - SHORTEST), last] },
        y: { range: (_, low, high) => [0, Math.max(1, (high ?? 0) * 1.1)] },
      },
      axes: [
        { ...axis, size: 24, gap: 4, space: 60, values: (_, splits) => splits.map((at) => clock.format(at * 1000)) },
        { ...axis, size: 44, gap: 4, space: 28, values: (_, splits) => splits.map((value) => compact.format(value)) },
      ],
      series: [{}, ...lines.map((_, index) => {
        const stroke = variable(`--line-${(index % MOST_LINES) + 1}`);
        const points = { show: false, size: 5, fill: stroke, filter: lonely };
        return { stroke, width: 2, points, fill: lines.length === 1 ? `${variable("--line-1")}22` : undefined };
      })],
    };
  }
}

/** A value without neighbours makes no line, so it is drawn as a point. */
const lonely = ({ data }, line) => [...data[line].keys()].filter((at) =>
  data[line][at] !== null && (data[line][at - 1] ?? null) === null && (data[line][at + 1] ?? null) === null);

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const connections = new Chart("connections");
const messages = new Chart("messages");
const latency = new Chart("latency", 1);

export function drawCharts(series) {
  const nodes = Object.entries(series.connections);
  const sum = series.time.map((_, at) => nodes.reduce((total, [, values]) => total + (values[at] ?? 0), 0));
  connections.draw(series.time, nodes.length > MOST_LINES ? [["all nodes", sum]] : nodes);
  messages.draw(series.time, [["in", series.received], ["delivered", series.delivered]]);
  latency.draw(series.time, [["publish", series.publish_p99], ["delivery", series.delivery_p99]]);
}
