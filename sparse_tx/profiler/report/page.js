"use strict";

/* Draws the plots, and lets tables be sorted and filtered. The root element says how it went:
   data-plots counts the plots that were drawn, data-errors what went wrong, data-ready comes last. */

(() => {
  const root = document.documentElement;
  const errors = [];
  const report = (message) => {
    errors.push(String(message));
    root.dataset.errors = JSON.stringify(errors);
  };
  window.addEventListener("error", (event) => report(event.message));
  window.addEventListener("unhandledrejection", (event) => report(event.reason));

  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const hidden = new Set();

  // Of an axis, before finer ones are taken (FEWEST_TICKS of scale.py).
  const FEWEST_TICKS = 3;

  /** Pixels along an axis that the longest of these ticks takes, with some air. */
  function roomOf(name, ticks) {
    return name === "yaxis" ? 38 : 16 + 7 * Math.max(...ticks.map(([, text]) => text.length));
  }

  /** Replaces names such as "@series-0" by the theme's colours, at any depth. */
  function themed(value, style) {
    if (typeof value === "string" && value.startsWith("@")) {
      return style.getPropertyValue(`--${value.slice(1)}`).trim();
    }
    if (Array.isArray(value)) {
      return value.map((entry) => themed(entry, style));
    }
    if (value && typeof value === "object") {
      return Object.fromEntries(
        Object.entries(value).map(([name, entry]) => [name, themed(entry, style)]),
      );
    }
    return value;
  }

  /** The same choice as chosen_ticks of scale.py. */
  function chosenTicks(levels, low, high, most) {
    let shown = [];
    for (const level of levels) {
      shown = level.filter(([value]) => low <= value && value <= high);
      if (shown.length >= FEWEST_TICKS) {
        break;
      }
    }
    const step = Math.max(1, Math.ceil(shown.length / most));
    return shown.filter((_, at) => (shown.length - 1 - at) % step === 0);
  }

  function ticksOf(place, name, levels) {
    const axis = place._fullLayout[name];
    const [low, high] = axis.range.map((end) => 10 ** end);
    const most = Math.max(2, Math.floor(axis._length / roomOf(name, levels[0])));
    const ticks = chosenTicks(levels, low, high, most);
    return {
      [`${name}.tickvals`]: ticks.map(([value]) => value),
      [`${name}.ticktext`]: ticks.map(([, text]) => text),
    };
  }

  function setTicks(place, ticks) {
    const update = {};
    for (const [name, levels] of Object.entries(ticks)) {
      if (levels.length) {
        Object.assign(update, ticksOf(place, name, levels));
      }
    }
    if (!Object.keys(update).length) {
      return Promise.resolve();
    }
    const same = Object.entries(update).every(([path, value]) => {
      const [axis, key] = path.split(".");
      return String(place.layout[axis][key]) === String(value);
    });
    return same ? Promise.resolve() : window.Plotly.relayout(place, update);
  }

  function layoutOf(place, figure, style) {
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const layout = themed(figure.layout, style);
    const axis = {
      color: colour("soft"),
      gridcolor: colour("grid"),
      zeroline: false,
      automargin: true,
      tickmode: figure.ticks.xaxis ? "array" : "auto",
    };
    for (const name of ["xaxis", "yaxis"]) {
      const title = layout[name].title ? { ...layout[name].title, standoff: 10 } : undefined;
      layout[name] = { ...axis, ...layout[name], title };
    }
    return {
      ...layout,
      font: { family: style.fontFamily, size: 12.5, color: colour("ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 16, t: 12, b: 8, ...layout.margin },
      showlegend: false,
      uirevision: "kept", // drawn again, a plot stays zoomed
      hovermode: "closest",
      dragmode: touch ? false : "zoom",
      width: place.clientWidth,
      height: place.clientHeight,
      hoverlabel: {
        bgcolor: colour("paper"),
        bordercolor: colour("soft"),
        font: { color: colour("ink"), size: 13 },
        align: "left",
      },
    };
  }

  const CONFIG = {
    displaylogo: false,
    displayModeBar: false,
    doubleClick: "reset",
  };

  async function draw(place) {
    const figure = figures[place.dataset.plot];
    const style = getComputedStyle(root);
    const layout = layoutOf(place, figure, getComputedStyle(document.body));
    const data = themed(figure.data, style).map((trace) => ({
      ...trace,
      visible: !(trace.meta && hidden.has(trace.meta.series)),
    }));
    await window.Plotly.react(place, data, layout, CONFIG);
    await setTicks(place, figure.ticks);
    if (!place.dataset.drawn) {
      widths.observe(place);
      place.dataset.drawn = "true";
      place.on("plotly_relayout", () => setTicks(place, figure.ticks));
      root.dataset.plots = String(Number(root.dataset.plots || 0) + 1);
    }
  }

  async function drawAll() {
    for (const place of document.querySelectorAll(".plot")) {
      try {
        await draw(place);
      } catch (error) {
        place.textContent = "This plot could not be drawn; the tables have its figures.";
        report(`${place.id}: ${error}`);
      }
    }
  }

  /** Draws a plot again at the width that it has come to have. */
  const widths = new ResizeObserver((changes) => {
    for (const { target } of changes) {
      if (target.dataset.drawn && Math.abs(target._fullLayout.width - target.clientWidth) > 1) {
        draw(target);
      }
    }
  });

  function offerSeries() {
    for (const button of document.querySelectorAll(".key button")) {
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(shown));
        hidden[shown ? "delete" : "add"](button.dataset.series);
        drawAll();
      });
    }
  }

  /** Compares two cells: numbers by value, others as text; cells without a value come last. */
  function order(first, second, isText, direction) {
    if (isText) {
      const compared = first.textContent.localeCompare(second.textContent, "en", { numeric: true });
      return direction * compared;
    }
    const [a, b] = [first, second].map((cell) => cell.dataset.value);
    if (a === undefined || b === undefined) {
      return (a === undefined) - (b === undefined);
    }
    return direction * (Number(a) - Number(b));
  }

  function makeSortable(table) {
    const headings = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of headings) {
          other.setAttribute("aria-sort", "none");
        }
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const isText = heading.classList.contains("text");
        const rows = [...body.rows].sort((a, b) =>
          order(a.cells[column], b.cells[column], isText, up ? 1 : -1),
        );
        body.append(...rows);
      });
    });
  }

  function makeFilterable(table, input, output) {
    const rows = [...table.tBodies[0].rows];
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join("\n");
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      output.textContent = `${shown} of ${rows.length} rows`;
    });
  }

  const settings = document.getElementById("settings");
  if (settings) {
    makeSortable(settings);
    makeFilterable(
      settings,
      document.getElementById("filter"),
      document.getElementById("shown"),
    );
  }
  offerSeries();
  root.dataset.plots = "0";
  dark.addEventListener("change", drawAll);
  drawAll().then(() => {
    root.dataset.ready = "true";
  });
})();
