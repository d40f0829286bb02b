"use strict";
// One sample in the grid. Every text is inserted as text, never as HTML.
const Card = (() => {
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const formatted = (value) => (value == null ? "none" : Number(value.toPrecision(4)).toString());

  function create(row, position, total) {
    const { outcomes } = Data.settings;
    const card = make("article", `card ${outcomes[row.outcome]}`);
    card.setAttribute("role", "listitem");
    card.setAttribute("aria-posinset", position + 1);
    card.setAttribute("aria-setsize", total);
    card.dataset.number = row.number;
    const open = make("button", "open");
    open.type = "button";
    open.tabIndex = -1;
    open.setAttribute("aria-label", `${row.prompt || row.id}. ${row.reasons.join(". ")} Open.`);
    card.append(open);
    if (outcomes[row.outcome] !== "quarantined") {
      const pair = make("div", "pair");
      const rgb = make("img", "rgb");
      rgb.alt = row.prompt ? `Image: ${row.prompt}` : `Image of ${row.id}`;
      rgb.hidden = true;
      const depth = make("canvas", "depth");
      depth.setAttribute("role", "img");
      depth.setAttribute("aria-label", row.prompt ? `Depth: ${row.prompt}` : `Depth of ${row.id}`);
      pair.append(rgb, depth);
      card.append(pair);
    }
    const words = make("div", "text");
    if (row.reasons.length) words.append(make("p", "reason", row.reasons.join(" · ")));
    if (row.prompt) words.append(make("p", "prompt", row.prompt));
    const low = make("p", "low");
    const { sort } = Selection.state;
    const values = Selection.scores.get(sort); // the value that the cards are sorted by
    if (values) low.append(make("span", "score", sort), make("b", "", formatted(values[row.number])));
    else low.append(make("span", "id", row.id));
    words.append(low);
    card.append(words);
    return card;
  }

  // Load the images of a card and show them, unless the card was removed in the meantime.
  async function fill(card) {
    const pair = card.querySelector(".pair");
    if (!pair || !card.isConnected || card.dataset.filled) return;
    card.dataset.filled = "yes";
    try {
      const shown = await Data.shown(Number(card.dataset.number));
      if (!card.isConnected) return;
      const [rgb, depth] = pair.children;
      if (shown.rgb) {
        rgb.src = `data:image/webp;base64,${shown.rgb}`;
        rgb.hidden = false;
      } else {
        pair.classList.add("alone");
      }
      if (shown.depth) Depth.draw(depth, await Depth.unpack(shown.depth));
    } catch (error) {
      delete card.dataset.filled;
      Main.showError(error);
    }
  }

  return { create, fill, make, formatted };
})();
