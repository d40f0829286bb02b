"use strict";
// Which rows are shown and in which order: outcome, search, ranges of scores, kinds of reasons, sorting. The address holds
// this state, so that a view can be shared.
const Selection = (() => {
  const state = { outcome: 0, search: "", sort: "", descending: false, ranges: new Map(), kinds: new Set() };
  let rows = [];
  let scores = new Map();
  const listeners = [];

  const kindOf = (reason) => (/^[\w-]{1,60}(?=:)/.exec(reason) || ["other"])[0];

  function inRanges(row) {
    for (const [name, [low, high]] of state.ranges) {
      const value = scores.get(name)?.[row.number];
      if (value == null || value < low || value > high) return false;
    }
    return true;
  }

  function compare(first, second) {
    const order = state.descending ? -1 : 1;
    if (state.sort === "id") return order * (first.id < second.id ? -1 : first.id > second.id ? 1 : 0);
    const values = scores.get(state.sort);
    if (!values) return order * (first.number - second.number);
    const [a, b] = [values[first.number], values[second.number]];
    if (a == null || b == null) return (a == null) - (b == null) || first.number - second.number; // rows without the score come last in both orders
    return order * (a - b) || first.number - second.number;
  }

  function chosen() {
    const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
    return rows.filter((row) => row.outcome === state.outcome
      && words.every((word) => row.text.includes(word))
      && (!state.kinds.size || row.reasons.some((reason) => state.kinds.has(kindOf(reason))))
      && inRanges(row)).sort(compare);
  }

  function toAddress() {
    const parts = new URLSearchParams();
    parts.set("tab", Data.settings.outcomes[state.outcome]);
    if (state.search) parts.set("q", state.search);
    if (state.sort) parts.set("sort", state.sort);
    if (state.descending) parts.set("desc", "1");
    for (const kind of state.kinds) parts.append("reason", kind);
    for (const [name, [low, high]] of state.ranges) parts.append("range", `${low},${high},${name}`);
    try {
      history.replaceState(null, "", `#${parts}`);
    } catch { /* some browsers refuse this on a disk: the address then does not hold the view */ }
  }

  function fromAddress() {
    const parts = new URLSearchParams(location.hash.slice(1));
    const index = Data.settings.outcomes.indexOf(parts.get("tab") || location.hash.slice(1));
    const filled = Data.settings.shown.findIndex((count) => count > 0);
    state.outcome = index >= 0 ? index : Math.max(0, filled);
    state.search = parts.get("q") || "";
    state.sort = parts.get("sort") || "";
    state.descending = parts.get("desc") === "1";
    state.kinds = new Set(parts.getAll("reason"));
    state.ranges = new Map();
    for (const text of parts.getAll("range")) {
      const match = /^([^,]+),([^,]+),(.+)$/.exec(text);
      const limits = match && [Number(match[1]), Number(match[2])];
      if (limits && !limits.some(Number.isNaN)) state.ranges.set(match[3], limits);
    }
  }

  function notify() {
    const shown = chosen();
    for (const listener of listeners) listener(shown);
  }

  // Change fields of the state and notify all listeners.
  function change(fields) {
    Object.assign(state, fields);
    toAddress();
    notify();
  }

  function setRange(name, limits) {
    if (limits) state.ranges.set(name, limits);
    else state.ranges.delete(name);
    change({});
  }

  function toggleKind(kind) {
    if (!state.kinds.delete(kind)) state.kinds.add(kind);
    change({});
  }

  function receive(newRows, newScores) {
    rows = newRows;
    scores = newScores;
    notify();
  }

  return {
    state, change, setRange, toggleKind, receive, fromAddress, kindOf,
    listen: (listener) => listeners.push(listener),
    get rows() { return rows; },
    get scores() { return scores; },
    clear: () => change({ search: "", ranges: new Map(), kinds: new Set() }),
  };
})();
