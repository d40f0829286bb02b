"use strict";
// One sample in detail: slider, points, texts, and its scores within the distribution of all samples.
const Detail = (() => {
  const dialog = document.getElementById("detail");
  const part = (name) => document.getElementById(`detail-${name}`);
  const { make, formatted } = Card;
  let position = 0;

  function scoreList(row) {
    const list = make("dl", "scores");
    for (const [name, values] of Selection.scores) {
      const value = values[row.number];
      if (value == null) continue;
      const entry = make("div");
      entry.append(make("dt", "", name), make("dd", "", formatted(value)));
      const histogram = Panel.histogram(name);
      if (histogram && histogram.high > histogram.low) {
        const plot = make("div", "plot");
        plot.style.setProperty("--at", `${(100 * (value - histogram.low)) / (histogram.high - histogram.low)}%`);
        plot.append(Panel.bars(histogram), make("i"));
        entry.append(plot);
      }
      list.append(entry);
    }
    return list;
  }

  function link(path) {
    const { dataset } = Data.settings;
    if (!path) return [];
    if (!dataset) return [document.createTextNode(path)];
    const anchor = make("a", "", "Download the whole point cloud (PLY)");
    anchor.href = dataset + path.split("/").map(encodeURIComponent).join("/");
    anchor.download = "";
    return [anchor];
  }

  function words(row) {
    const outcome = Data.settings.outcomes[row.outcome];
    part("place").textContent = `${(position + 1).toLocaleString("en")} of ${Grid.shown.length.toLocaleString("en")}`;
    part("outcome").textContent = outcome;
    part("outcome").className = `outcome ${outcome}`;
    part("title").textContent = row.prompt || row.id;
    part("id").textContent = row.prompt ? row.id : "";
    part("reasons").replaceChildren(...row.reasons.map((reason) => make("li", "", reason)));
    part("scores").replaceChildren(scoreList(row));
  }

  function facts(shown) {
    part("facts").replaceChildren(...Object.entries(shown.facts || {}).map(([name, value]) => {
      const entry = make("div");
      entry.append(make("dt", "", name), make("dd", "", value));
      return entry;
    }));
    part("link").replaceChildren(...link(shown.pointcloud));
    part("trace").hidden = !shown.traceback;
    part("trace").querySelector("pre").textContent = shown.traceback || "";
  }

  async function fill() {
    const row = Grid.shown[position];
    const mine = position;
    words(row);
    // Not `disabled`, which would lose the keyboard focus.
    document.getElementById("previous").setAttribute("aria-disabled", String(position === 0));
    document.getElementById("next").setAttribute("aria-disabled", String(position === Grid.shown.length - 1));
    try {
      const shown = await Data.shown(row.number);
      const depth = shown.depth ? await Depth.unpack(shown.depth) : null;
      if (mine !== position || !dialog.open) return;
      facts(shown);
      dialog.classList.toggle("wordy", !shown.rgb && !depth);
      Compare.show(row, shown, depth);
      await Points.show(shown, depth);
      if (Grid.shown[position + 1]) Data.shown(Grid.shown[position + 1].number).catch(() => {});
    } catch (error) {
      Main.showError(error);
      dialog.close();
    }
  }

  function open(at) {
    position = at;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    fill();
  }

  function step(by) {
    const next = position + by;
    if (next < 0 || next >= Grid.shown.length) return;
    position = next;
    fill();
  }

  dialog.addEventListener("close", () => Grid.go(position));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
  });
  document.getElementById("close").addEventListener("click", () => dialog.close());
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  return { open, get isOpen() { return dialog.open; } };
})();
