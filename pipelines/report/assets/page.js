"use strict";
// Charts, zoom and downloads; all from the data that the page carries.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const specs = read("specs");
  const root = document.documentElement;

  const themeButton = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  themeButton.setAttribute("aria-pressed", String(isDark()));
  themeButton.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    themeButton.setAttribute("aria-pressed", String(isDark()));
  });

  // Rows go in by name, so that a specification holds no text of the data.
  const draw = async (id, spec) => {
    const place = document.getElementById(id);
    const isNarrow = place.clientWidth < 500;
    spec.config.legend.columns = isNarrow ? 2 : 4;
    spec.config.axis.labelLimit = place.clientWidth * (isNarrow ? 0.36 : 0.3);
    spec.config.axisX = { titleLimit: place.clientWidth * 0.6 };
    const options = { mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
    const { view } = await window.vegaEmbed(place, { ...spec, datasets: data }, options);
    const svg = place.querySelector("svg");
    if (svg) svg.setAttribute("aria-hidden", "true"); // the place itself is the image, with its name
    if (place.dataset.from) makeMovable(place, view);
    return view;
  };

  const makeMovable = (place, view) => {
    const whole = [Number(place.dataset.from), Number(place.dataset.to)];
    let shown = [...whole];
    const show = (from, to) => {
      const least = (whole[1] - whole[0]) / 200;
      const length = Math.min(whole[1] - whole[0], Math.max(least, to - from));
      const start = Math.min(Math.max(whole[0], from), whole[1] - length);
      shown = [start, start + length];
      view.signal("start", shown[0]).signal("end", shown[1]).runAsync();
      place.dataset.shown = shown.join(" ");
    };
    const zoom = (factor, at = 0.5) => {
      const length = shown[1] - shown[0];
      const middle = shown[0] + at * length;
      show(middle - at * length * factor, middle + (1 - at) * length * factor);
    };
    const shift = (share) => show(shown[0] + share * (shown[1] - shown[0]), shown[1] + share * (shown[1] - shown[0]));
    const actions = { in: () => zoom(0.5), out: () => zoom(2), earlier: () => shift(-0.25), later: () => shift(0.25), reset: () => show(...whole) };
    document.querySelector(`.zoom[data-for="${place.id}"]`).addEventListener("click", (event) => {
      const action = event.target.dataset.action;
      if (action) actions[action]();
    });
    place.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // a page that scrolls is not to be held up by a chart
      event.preventDefault();
      const box = place.getBoundingClientRect();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, (event.clientX - box.left) / box.width);
    }, { passive: false });
    let held = null;
    place.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse") return; // a finger scrolls the page
      held = { x: event.clientX, shown: [...shown] };
      place.setPointerCapture(event.pointerId);
    });
    place.addEventListener("pointermove", (event) => {
      if (!held) return;
      const moved = ((held.x - event.clientX) / place.clientWidth) * (held.shown[1] - held.shown[0]);
      show(held.shown[0] + moved, held.shown[1] + moved);
    });
    for (const name of ["pointerup", "pointercancel"]) place.addEventListener(name, () => { held = null; });
  };

  // A leading =, +, - or @ of a text would be a formula to a spreadsheet.
  const field = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (rows) => {
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    return [names, ...rows.map((row) => names.map((name) => row[name]))].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
  };
  for (const link of document.querySelectorAll("a[data-format]")) {
    link.addEventListener("click", () => {
      const rows = link.dataset.rows ? data[link.dataset.rows] : data;
      const isCsv = link.dataset.format === "csv";
      const text = isCsv ? `\ufeff${csv(rows)}` : JSON.stringify(rows, null, 1); // the mark lets Excel read Japanese
      const address = URL.createObjectURL(new Blob([text], { type: isCsv ? "text/csv" : "application/json" }));
      link.href = address;
      setTimeout(() => { URL.revokeObjectURL(address); link.href = "#main"; }, 10000);
    });
  }

  for (const event of ["beforeprint", "afterprint"]) {
    window.addEventListener(event, () => {
      for (const details of document.querySelectorAll("details")) {
        if (event === "beforeprint") { details.dataset.wasOpen = details.open; details.open = true; }
        else if (details.dataset.wasOpen === "false") details.open = false;
      }
    });
  }

  window.drawn = Promise.all(Object.entries(specs).map(([id, spec]) => draw(id, spec)))
    .then(() => { root.dataset.drawn = "true"; });
})();
