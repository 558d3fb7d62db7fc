"use strict";
// The page is whole without this: it sorts tables, chooses charts, filters the gallery and compares images.
(() => {
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Tables: a click on a heading sorts, best or first on top; another click turns the order around.
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const headings = all("thead th", table);
    headings.forEach((heading, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      heading.setAttribute("aria-sort", "none");
      const kind = heading.dataset.sort;
      button.addEventListener("click", () => {
        const now = heading.getAttribute("aria-sort");
        const first = kind === "high" ? "descending" : "ascending";
        const then = first === "descending" ? "ascending" : "descending";
        const order = now === first ? then : first;
        for (const each of headings) each.setAttribute("aria-sort", each === heading ? order : "none");
        const sign = order === "ascending" ? 1 : -1;
        const key = (row) => row.cells[place];
        const rows = [...body.rows].sort((a, b) => {
          if (kind === "text") {
            return sign * key(a).textContent.localeCompare(key(b).textContent, undefined, { numeric: true });
          }
          const [x, y] = [key(a).dataset.value, key(b).dataset.value];
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
          return sign * (x - y);
        });
        body.append(...rows);
      });
    });
  }

  // Charts: one benchmark and one metric at a time.
  const choice = byId("chart-controls");
  if (choice) {
    const [benchmark, column] = [byId("chart-benchmark"), byId("chart-column")];
    const charts = all(".chart");
    const update = () => {
      const there = new Set(charts.filter((c) => c.dataset.benchmark === benchmark.value).map((c) => c.dataset.column));
      for (const option of column.options) option.disabled = !there.has(option.value);
      if (!there.has(column.value)) column.value = [...there][0];
      for (const each of charts) {
        each.hidden = each.dataset.benchmark !== benchmark.value || each.dataset.column !== column.value;
      }
    };
    const shown = charts.find((each) => !each.hidden);
    if (shown) column.value = shown.dataset.column;
    choice.hidden = false;
    choice.addEventListener("change", update);
    choice.addEventListener("submit", (event) => event.preventDefault());
    update();
  }

  const place = byId("samples");
  if (!place) return;

  // Before and after: the source lies over the edit up to where the slider stands.
  const compare = (edit, source) => {
    const frame = edit.querySelector(".edited .frame");
    const image = frame.querySelector(".image");
    if (!image || !source) return;
    const label = document.createElement("label");
    label.className = "compare";
    const range = document.createElement("input");
    Object.assign(range, { type: "range", min: "0", max: "100", value: "0", step: "1", autocomplete: "off" });
    range.setAttribute("aria-label", `Source over the edit by ${edit.dataset.editor}`);
    label.append("edit", range, "source");
    frame.parentElement.append(label);
    let before = null;
    const show = () => {
      if (!before) {
        before = document.createElement("div");
        before.className = "before";
        before.append(source.cloneNode(true));
        before.setAttribute("aria-hidden", "true");
        frame.append(before);
      }
      frame.classList.toggle("compared", range.value !== "0");
      frame.style.setProperty("--at", `${range.value}%`);
      range.setAttribute("aria-valuetext", `${range.value} % source`);
    };
    range.addEventListener("input", show);
    range.setAttribute("aria-valuetext", "0 % source");
    image.draggable = false;
    const follow = (event) => {
      const box = frame.getBoundingClientRect();
      range.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
      show();
    };
    // A vertical swipe scrolls the page; a horizontal one or a tap moves the slider.
    let from = null;
    let meant = false;
    frame.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = event;
      meant = event.pointerType === "mouse";
      frame.setPointerCapture(event.pointerId);
      if (meant) follow(event);
    });
    frame.addEventListener("pointermove", (event) => {
      if (!from) return;
      const [x, y] = [event.clientX - from.clientX, event.clientY - from.clientY].map(Math.abs);
      meant ||= x > 6 && x > y;
      if (meant) follow(event);
    });
    frame.addEventListener("pointerup", (event) => {
      if (from) follow(event);
      from = null;
    });
    frame.addEventListener("pointercancel", () => {
      from = null;
    });
  };

  const samples = all(".sample", place).map((element, order) => {
    const source = element.querySelector(".source .image");
    const edits = all(".edit", element).map((edit) => {
      compare(edit, source);
      const { editor, scores, failed } = edit.dataset;
      return { element: edit, editor, scores: JSON.parse(scores), failed: Boolean(failed) };
    });
    return { element, order, edits, ...element.dataset };
  });

  const [filters, strip] = [byId("filters"), byId("strip")];
  const value = (id) => byId(id)?.value ?? "";
  let linked = null;
  let shown = samples;
  let ordered = "";

  const mean = (numbers) => (numbers.length ? numbers.reduce((a, b) => a + b, 0) / numbers.length : null);

  const apply = () => {
    const editor = strip.querySelector("input:checked").value;
    const [benchmark, task, source] = ["filter-benchmark", "filter-task", "filter-source"].map(value);
    const words = value("filter-words").trim().toLowerCase().split(/\s+/).filter(Boolean);
    const column = value("filter-column");
    const [low, high] = ["filter-low", "filter-high"].map((id) => parseFloat(value(id)));
    const bounded = !Number.isNaN(low) || !Number.isNaN(high);
    const failed = byId("filter-failed").checked;
    const keep = (sample) => {
      const edits = sample.edits.filter((edit) => !editor || `=${edit.editor}` === editor);
      const found = edits.map((edit) => edit.scores[column]).filter((score) => score !== undefined);
      sample.score = mean(found);
      return (
        edits.length > 0 &&
        (!benchmark || sample.benchmark === benchmark) &&
        (!task || `=${sample.task}` === task) &&
        (!source || `=${sample.source}` === source) &&
        words.every((word) => sample.words.includes(word)) &&
        (!failed || edits.some((edit) => edit.failed)) &&
        (!bounded || found.some((score) => !(score < low) && !(score > high)))
      );
    };
    let count = 0;
    for (const sample of samples) {
      const kept = keep(sample);
      count += kept;
      const isLinked = sample.element === linked;
      sample.element.hidden = !kept && !isLinked;
      sample.element.classList.toggle("aside", !kept && isLinked);
      const here = sample.edits.some((edit) => `=${edit.editor}` === editor);
      sample.element.classList.toggle("one", here);
      for (const edit of sample.edits) edit.element.hidden = here && `=${edit.editor}` !== editor;
    }
    const order = value("filter-order");
    const sign = order === "down" ? -1 : 1;
    shown = [...samples];
    if (order) {
      shown.sort((a, b) => (a.score === null) - (b.score === null) || sign * (a.score - b.score) || a.order - b.order);
    }
    const sequence = shown.map((sample) => sample.order).join();
    if (ordered && sequence !== ordered) place.append(...shown.map((sample) => sample.element));
    ordered = sequence;
    shown = shown.filter((sample) => !sample.element.hidden);
    byId("count").textContent = `${count} of ${samples.length} samples`;
  };

  // Keep the samples' position on the screen when content above them changes.
  const steadily = (change) => {
    const top = strip.getBoundingClientRect().bottom;
    const under = shown.find((each) => each.element.getBoundingClientRect().bottom > top + 1);
    const before = under?.element.getBoundingClientRect().top;
    change();
    if (under && before < innerHeight && !under.element.hidden) {
      scrollBy({ top: under.element.getBoundingClientRect().top - before, behavior: "instant" });
    }
  };

  const goTo = (element) => {
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "start", behavior: "instant" });
    requestAnimationFrame(() => element.scrollIntoView({ block: "start", behavior: "instant" }));
  };

  const follow = () => {
    let name = location.hash.slice(1);
    try {
      name = decodeURIComponent(name);
    } catch {
      // stays as it is
    }
    const element = byId(name);
    linked?.classList.remove("linked");
    linked = element?.classList.contains("sample") ? element : null;
    const absent = byId("absent");
    absent.hidden = Boolean(element) || !name.startsWith("s-");
    absent.textContent = absent.hidden ? "" : `The sample that the link names, ${name}, isn't on this page.`;
    apply();
    if (linked) {
      linked.classList.add("linked");
      for (const each of all("details", linked)) each.open = true;
      goTo(linked);
    } else if (!absent.hidden) {
      absent.scrollIntoView({ block: "center", behavior: "instant" });
    }
  };

  let waiting = 0;
  filters.hidden = strip.hidden = false;
  filters.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(apply, 80);
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(apply));
  strip.addEventListener("change", () => steadily(apply));
  addEventListener("hashchange", follow);
  place.addEventListener("click", (event) => {
    const link = event.target.closest?.("h3 a");
    if (link && link.hash === location.hash) follow();
  });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest?.("input, select, textarea, .scroll")) return;
    const step = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
    if (!step || !shown.length) return;
    event.preventDefault();
    const focused = document.activeElement?.closest?.(".sample");
    let at = shown.findIndex((each) => each.element === focused);
    if (at < 0) {
      const top = strip.getBoundingClientRect().bottom;
      const below = shown.findIndex((each) => each.element.getBoundingClientRect().top >= top - 1);
      at = step > 0 ? (below < 0 ? shown.length : below) - 1 : below < 0 ? shown.length : below;
    }
    goTo(shown[Math.min(Math.max(at + step, 0), shown.length - 1)].element);
  });

  if (matchMedia("(max-width: 40rem)").matches) {
    const first = all("#editors input")[1];
    if (first) first.checked = true;
  }
  follow();
})();
