"use strict";
// A virtual list: the page is as tall as all rows, but only cards near the window exist.
const Grid = (() => {
  const grid = document.getElementById("grid");
  const WIDTHS = { pair: 300, wipe: 220, image: 220, depth: 220 }; // minimum width of a card in pixels
  const GAP = 16;
  const [TEXT, ID] = [92, 36]; // pixels below the images, with text and without
  const FILL_DELAY = 60; // milliseconds, so that fast scrolling through thousands of rows loads none of them
  const cards = new Map(); // position -> card
  let shown = [];
  let layout = { columns: 1, width: 300, height: 300 };
  let current = 0;
  let timer = 0;

  function measure() {
    const mode = document.documentElement.dataset.mode;
    const total = grid.clientWidth;
    const least = Math.min(WIDTHS[mode], total);
    const columns = Math.max(1, Math.floor((total + GAP) / (least + GAP)));
    const width = (total - GAP * (columns - 1)) / columns;
    const imagesHeight = Data.settings.outcomes[Selection.state.outcome] === "quarantined" ? 0
      : (mode === "pair" ? width / 2 : width) / Data.settings.aspect;
    layout = { columns, width, height: Math.round(imagesHeight + (shown.some((row) => row.prompt || row.reasons.length) ? TEXT : ID)) };
    grid.style.setProperty("--images", `${Math.round(imagesHeight)}px`);
    const lines = Math.ceil(shown.length / columns);
    grid.style.height = `${Math.max(0, lines * (layout.height + GAP) - GAP)}px`;
  }

  function place(card, position) {
    const [line, column] = [Math.floor(position / layout.columns), position % layout.columns];
    card.style.width = `${layout.width}px`;
    card.style.height = `${layout.height}px`;
    card.style.transform = `translate(${column * (layout.width + GAP)}px, ${line * (layout.height + GAP)}px)`;
  }

  function draw() {
    const top = -grid.getBoundingClientRect().top;
    const step = layout.height + GAP;
    const first = Math.max(0, Math.floor(top / step) - 1) * layout.columns;
    const last = Math.min(shown.length, (Math.floor((top + innerHeight) / step) + 2) * layout.columns);
    for (const [position, card] of cards) {
      if (position < first || position >= last) {
        card.remove();
        cards.delete(position);
      }
    }
    for (let position = first; position < last; position++) {
      if (cards.has(position)) continue;
      const card = Card.create(shown[position], position, shown.length);
      card.dataset.position = position;
      place(card, position);
      cards.set(position, card);
      // In document order, for keyboard and screen reader users.
      const after = [...cards.keys()].filter((other) => other > position).sort((a, b) => a - b)[0];
      grid.insertBefore(card, after === undefined ? null : cards.get(after));
    }
    mark();
    clearTimeout(timer);
    timer = setTimeout(() => cards.forEach(Card.fill), FILL_DELAY);
  }

  function mark() {
    for (const [position, card] of cards) card.firstChild.tabIndex = position === current ? 0 : -1;
    if (!cards.has(current)) {
      const first = cards.values().next().value;
      if (first) first.firstChild.tabIndex = 0;
    }
  }

  function clear() {
    cards.forEach((card) => card.remove());
    cards.clear();
  }

  function rebuild() {
    measure();
    clear();
    draw();
  }

  function show(rows) {
    const kept = shown[current]?.number;
    shown = rows;
    current = Math.max(0, rows.findIndex((row) => row.number === kept));
    rebuild();
  }

  // Scroll to a row by its position and focus it.
  function go(position) {
    if (!shown.length) return;
    current = Math.min(shown.length - 1, Math.max(0, position));
    const step = layout.height + GAP;
    const top = grid.getBoundingClientRect().top + scrollY + Math.floor(current / layout.columns) * step;
    const bar = document.querySelector("nav").offsetHeight + GAP;
    if (top - bar < scrollY) scrollTo(0, top - bar);
    else if (top + step > scrollY + innerHeight) scrollTo(0, top + step - innerHeight);
    draw();
    cards.get(current)?.firstChild.focus({ preventScroll: true });
  }

  function key(event) {
    const page = Math.max(1, Math.floor(innerHeight / (layout.height + GAP))) * layout.columns;
    const step = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -layout.columns, ArrowDown: layout.columns,
      PageUp: -page, PageDown: page, Home: -shown.length, End: shown.length,
    }[event.key];
    if (!step || !shown.length) return false;
    const focused = grid.contains(document.activeElement);
    const isFirst = !focused && event.key.startsWith("Arrow") && scrollY === 0;
    if (focused || event.key.startsWith("Arrow")) {
      go(isFirst ? current : current + step);
      return true;
    }
    return false; // the browser scrolls instead
  }

  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    current = Number(card.dataset.position);
    mark();
    Detail.open(current);
  });
  grid.addEventListener("pointermove", (event) => {
    const pair = event.target.closest(".card")?.querySelector(".pair");
    if (!pair || document.documentElement.dataset.mode !== "wipe") return;
    const box = pair.getBoundingClientRect();
    pair.style.setProperty("--wipe", `${Math.round(100 * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)))}%`);
  });
  addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
  let width = 0;
  new ResizeObserver(() => {
    if (grid.clientWidth === width) return;
    width = grid.clientWidth;
    rebuild();
  }).observe(grid);
  addEventListener("resize", draw);

  return { show, go, key, rebuild, get shown() { return shown; }, get current() { return current; } };
})();
