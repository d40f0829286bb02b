"use strict";
// The page around the grid: heading, tabs, toolbar and keys; starts the page.
const Main = (() => {
  const { settings } = Data;
  const { make } = Card;
  const root = document.documentElement;
  const at = (name) => document.getElementById(name);
  const number = (value) => value.toLocaleString("en");
  const total = settings.counts.reduce((a, b) => a + b, 0);
  const shownTotal = settings.shown.reduce((a, b) => a + b, 0);

  // Settings for the next visit. Some browsers store nothing for a page on a disk.
  const memory = {
    get(name) { try { return localStorage.getItem(`gallery-${name}`); } catch { return null; } },
    set(name, value) { try { localStorage.setItem(`gallery-${name}`, value); } catch { /* not stored */ } },
  };

  function showError(error) {
    at("trouble").textContent = error.message;
    at("trouble").hidden = false;
  }

  function setTheme(theme) {
    root.dataset.theme = theme;
    at("theme").textContent = theme === "dark" ? "☀" : "☾";
    at("theme").title = theme === "dark" ? "Light (t)" : "Dark (t)";
  }
  function switchTheme() {
    setTheme(root.dataset.theme === "dark" ? "light" : "dark");
    memory.set("theme", root.dataset.theme);
  }

  function setColours(name) {
    Colours.choose(name);
    at("colours").value = Colours.current;
    const legend = at("legend").getContext("2d");
    const image = legend.createImageData(Colours.entries, 1);
    const table = Colours.table();
    for (let entry = 0; entry < Colours.entries; entry++) {
      image.data.set([...table.slice(entry * 3, entry * 3 + 3), 255], entry * 4);
    }
    legend.putImageData(image, 0, 0);
  }

  function heading() {
    for (const [name, value] of Object.entries(settings.facts)) {
      const entry = make("div");
      entry.append(make("dt", "", name), make("dd", "", value));
      at("facts").append(entry);
    }
    settings.outcomes.forEach((outcome, index) => {
      const tab = make("button", `tab-${outcome}`, outcome);
      tab.type = "button";
      tab.id = `tab-${outcome}`;
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", "main");
      tab.append(make("b", "", number(settings.counts[index])));
      tab.addEventListener("click", () => Selection.change({ outcome: index, kinds: new Set() }));
      at("tabs").append(tab);
    });
    at("search").placeholder = `Search ${number(shownTotal)} prompts, ids, reasons`;
    if (shownTotal < total) {
      at("limit").textContent = `This page shows ${number(shownTotal)} of ${number(total)} samples, some of every file. `
        + "For more: jointdit gallery URI --rows N.";
      at("limit").hidden = false;
    }
    if (settings.dataset) {
      for (const [name, file] of [["Dataset card", "README.md"], ["Statistics", "stats.json"]]) {
        const anchor = make("a", "", name);
        anchor.href = settings.dataset + file;
        at("links").append(" · ", anchor);
      }
    }
    for (const name of Colours.names) at("colours").append(new Option(name));
  }

  function sortChoices() {
    const chosen = Selection.state.sort;
    const options = [new Option("table order", ""), new Option("id"), ...[...Selection.scores.keys()].map((name) => new Option(name))];
    at("sort").replaceChildren(...options);
    at("sort").value = chosen;
    if (at("sort").selectedIndex < 0) at("sort").value = "";
  }

  function describe(rows) {
    const { outcome, search, descending, ranges, kinds, sort } = Selection.state;
    settings.outcomes.forEach((name, index) => {
      at(`tab-${name}`).setAttribute("aria-selected", String(index === outcome));
      at(`tab-${name}`).tabIndex = index === outcome ? 0 : -1;
    });
    at("main").setAttribute("aria-labelledby", `tab-${settings.outcomes[outcome]}`);
    if (at("search").value !== search) at("search").value = search;
    at("sort").value = sort;
    at("direction").textContent = descending ? "↓" : "↑";
    at("direction").setAttribute("aria-label", descending ? "Descending. Switch to ascending" : "Ascending. Switch to descending");
    const name = settings.outcomes[outcome];
    const isFiltered = search || ranges.size || kinds.size;
    at("count").textContent = isFiltered
      ? `${number(rows.length)} of ${number(settings.shown[outcome])} match` : `${number(rows.length)} ${name}`;
    at("empty").hidden = rows.length > 0;
    if (!rows.length) {
      at("empty").textContent = settings.shown[outcome] ? "No sample matches." : `No sample was ${name}.`;
      if (settings.shown[outcome]) {
        const clear = make("button", "", "Clear filters");
        clear.type = "button";
        clear.addEventListener("click", Selection.clear);
        at("empty").append(" ", clear);
      }
    }
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape" && event.target === at("search")) {
      Selection.change({ search: "" });
      at("search").blur();
    } else if (typing) {
      if (event.target !== at("search") || !["ArrowDown", "Enter"].includes(event.key)) return;
      Grid.go(0);
    } else if (event.target.matches("[role=tab]") && /^Arrow(Left|Right)$/.test(event.key)) {
      const count = settings.outcomes.length;
      const next = (Selection.state.outcome + (event.key === "ArrowRight" ? 1 : count - 1)) % count;
      Selection.change({ outcome: next, kinds: new Set() });
      at(`tab-${settings.outcomes[next]}`).focus();
    } else if (event.key === "/") at("search").focus();
    else if (event.key === "?") at("keys").showModal();
    else if (event.key === "f") Panel.toggle();
    else if (event.key === "t") switchTheme();
    else if (/^[1-3]$/.test(event.key)) Selection.change({ outcome: Number(event.key) - 1, kinds: new Set() });
    else if (!Grid.key(event)) return;
    event.preventDefault();
  }

  async function start() {
    heading();
    setTheme(memory.get("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
    root.dataset.mode = "pair";
    setColours(memory.get("colours") || Colours.names[0]);
    Selection.fromAddress();
    Selection.listen(describe);
    Selection.listen(Grid.show);
    Selection.listen(Panel.sync);
    document.addEventListener("keydown", key);
    at("theme").addEventListener("click", switchTheme);
    at("help").addEventListener("click", () => at("keys").showModal());
    at("search").addEventListener("input", () => Selection.change({ search: at("search").value }));
    at("sort").addEventListener("change", () => Selection.change({ sort: at("sort").value }));
    at("direction").addEventListener("click", () => Selection.change({ descending: !Selection.state.descending }));
    at("mode").addEventListener("change", () => { root.dataset.mode = at("mode").value; Grid.rebuild(); });
    at("colours").addEventListener("change", () => {
      setColours(at("colours").value);
      memory.set("colours", Colours.current);
      Grid.rebuild();
      Compare.recolour();
      Points.refresh();
    });
    addEventListener("hashchange", () => { Selection.fromAddress(); Selection.change({}); });
    if (matchMedia("(min-width: 1100px)").matches) Panel.toggle(true);
    try {
      const { rows, scores } = await Data.readIndex((rowsSoFar, scoresSoFar) => {
        Selection.receive(rowsSoFar, scoresSoFar);
        sortChoices();
      });
      Selection.receive(rows, scores);
    } catch (error) {
      showError(error);
    }
    sortChoices();
    Panel.build();
    performance.mark("ready");
    root.dataset.ready = "yes";
  }

  return { showError, start };
})();
Main.start();
