"use strict";
// The filters: a histogram with two handles for each score, and the kinds of reasons.
const Panel = (() => {
  const panel = document.getElementById("panel");
  const active = document.getElementById("active");
  const button = document.getElementById("toggle-panel");
  const { make, formatted } = Card;
  const BINS = 40;
  const STEPS = 1000;
  const SVG = "http://www.w3.org/2000/svg";

  // {low, high, bins: counts by outcome} of a score, or null if no row has it.
  function histogram(name) {
    const values = Selection.scores.get(name);
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value == null) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) return null;
    const bins = Array.from({ length: BINS }, () => Data.settings.outcomes.map(() => 0));
    for (const row of Selection.rows) {
      const value = values[row.number];
      if (value == null) continue;
      bins[Math.min(BINS - 1, Math.floor(((value - low) / (high - low || 1)) * BINS))][row.outcome] += 1;
    }
    return { low, high, bins };
  }

  function bars({ bins }) {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${BINS} 20`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const top = Math.max(...bins.map((counts) => counts.reduce((a, b) => a + b, 0)), 1);
    bins.forEach((counts, bin) => {
      let y = 20;
      counts.forEach((count, outcome) => {
        if (!count) return;
        const height = Math.max(0.6, (count / top) * 20);
        const bar = document.createElementNS(SVG, "rect");
        bar.setAttribute("x", bin + 0.1);
        bar.setAttribute("width", 0.8);
        bar.setAttribute("y", (y -= height));
        bar.setAttribute("height", height);
        bar.setAttribute("class", `bar-${Data.settings.outcomes[outcome]}`);
        svg.append(bar);
      });
    });
    return svg;
  }

  function range(name) {
    const counts = histogram(name);
    if (!counts || counts.low === counts.high) return null;
    const { low, high } = counts;
    const box = make("fieldset", "range");
    box.dataset.score = name;
    box.append(make("legend", "", name));
    const plot = make("div", "plot");
    const [from, to] = ["at least", "at most"].map((bound) => {
      const input = make("input");
      input.type = "range";
      Object.assign(input, { min: 0, max: STEPS, step: 1 });
      input.setAttribute("aria-label", `${name} ${bound}`);
      return input;
    });
    const ends = make("p", "ends");
    const [least, most] = [make("output"), make("output")];
    ends.append(least, most);
    const value = (input) => low + (Number(input.value) / STEPS) * (high - low);
    const limits = () => [Number(from.value) ? value(from) : -Infinity, Number(to.value) < STEPS ? value(to) : Infinity];
    const write = () => {
      [least.textContent, most.textContent] = [formatted(value(from)), formatted(value(to))];
      for (const [input, output] of [[from, least], [to, most]]) input.setAttribute("aria-valuetext", output.textContent);
      plot.style.setProperty("--from", `${from.value / 10}%`);
      plot.style.setProperty("--to", `${to.value / 10}%`);
    };
    for (const input of [from, to]) {
      input.addEventListener("input", () => {
        if (Number(from.value) > Number(to.value)) (input === from ? to : from).value = input.value;
        write();
        const chosen = limits();
        Selection.setRange(name, chosen.some(Number.isFinite) ? chosen : null);
      });
    }
    box.sync = () => {
      const [first, last] = Selection.state.ranges.get(name) || [-Infinity, Infinity];
      const step = (end, other) => (Number.isFinite(end) ? Math.round(((end - low) / (high - low)) * STEPS) : other);
      if (document.activeElement !== from) from.value = step(first, 0);
      if (document.activeElement !== to) to.value = step(last, STEPS);
      write();
    };
    plot.append(bars(counts), from, to);
    box.append(plot, ends);
    box.sync();
    return box;
  }

  function kinds() {
    const counts = new Map();
    for (const row of Selection.rows) {
      if (row.outcome !== Selection.state.outcome) continue;
      for (const kind of new Set(row.reasons.map(Selection.kindOf))) counts.set(kind, (counts.get(kind) || 0) + 1);
    }
    for (const kind of Selection.state.kinds) if (!counts.has(kind)) counts.set(kind, 0);
    const box = make("fieldset", "kinds");
    box.append(make("legend", "", "reasons"));
    for (const [kind, count] of [...counts].sort((a, b) => b[1] - a[1])) {
      const chip = make("button", "chip", kind);
      chip.type = "button";
      chip.append(make("b", "", count.toLocaleString("en")));
      chip.setAttribute("aria-pressed", String(Selection.state.kinds.has(kind)));
      chip.addEventListener("click", () => Selection.toggleKind(kind));
      box.append(chip);
    }
    box.hidden = [...counts.keys()].every((kind) => kind === "other");
    return box;
  }

  let reasons = kinds();
  // Rebuild the panel for the current rows.
  function build() {
    const key = make("p", "key");
    Data.settings.outcomes.slice(0, 2).forEach((outcome) => key.append(make("span", `key-${outcome}`, outcome)));
    const close = make("button", "done", "Done");
    close.type = "button";
    close.addEventListener("click", () => toggle(false));
    reasons = kinds();
    const ranges = [...Selection.scores.keys()].map(range).filter(Boolean);
    panel.replaceChildren(reasons, ...(ranges.length ? [key] : []), ...ranges, close);
    if (!ranges.length) panel.insertBefore(make("p", "note", "There are no scores to filter by."), close);
  }

  function chip(text, remove) {
    const item = make("li");
    const cross = make("button", "chip set", text);
    cross.type = "button";
    cross.setAttribute("aria-label", `Remove filter ${text}`);
    cross.append(make("b", "", "×"));
    cross.addEventListener("click", remove);
    item.append(cross);
    return item;
  }

  function sync() {
    const newer = kinds();
    reasons.replaceWith(newer);
    reasons = newer;
    for (const box of panel.querySelectorAll(".range")) box.sync();
    const { ranges, kinds: chosen, search } = Selection.state;
    const items = [...ranges].map(([name, [low, high]]) => chip(
      [Number.isFinite(low) && `${formatted(low)} ≤ `, name, Number.isFinite(high) && ` ≤ ${formatted(high)}`].filter(Boolean).join(""),
      () => Selection.setRange(name, null),
    ));
    for (const kind of chosen) items.push(chip(kind, () => Selection.toggleKind(kind)));
    if (search) items.push(chip(`“${search}”`, () => Selection.change({ search: "" })));
    active.replaceChildren(...items);
    const set = ranges.size + chosen.size;
    button.textContent = set ? `Filters (${set})` : "Filters";
  }

  function toggle(open = panel.hidden) {
    panel.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("with-panel", open);
  }

  button.addEventListener("click", () => toggle());
  return { build, sync, toggle, histogram, bars };
})();
