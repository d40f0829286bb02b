"use strict";
// The data files are scripts that call `gallery`: what a page on a disk may load. Rows come in blocks when they are
// looked at, and the blocks that were looked at longest ago are let go.
const Data = (() => {
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const KEPT_BLOCKS = 150;
  const blocks = new Map(); // number -> promise of its rows, the latest used last
  const arrived = new Map(); // file -> what it called with

  const name = (kind, number, digits) => `${settings.folder}/${kind}-${String(number).padStart(digits, "0")}.js`;
  const indexFile = (number) => name("index", number, 3);
  const rowsFile = (number) => name("rows", number, 5);

  window.gallery = {
    index(number, columns) { arrived.set(indexFile(number), columns); },
    rows(number, rows) { arrived.set(rowsFile(number), rows); },
  };

  function script(file) {
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      element.src = file;
      element.onload = () => { element.remove(); resolve(); };
      element.onerror = () => { element.remove(); reject(new Error(`${file} cannot be loaded: is the folder whole?`)); };
      document.head.append(element);
    });
  }

  async function load(file) {
    await script(file);
    if (!arrived.has(file)) throw new Error(`${file} is not what this page expects: load the page again.`);
    const value = arrived.get(file);
    arrived.delete(file);
    return value;
  }

  // Text and scores of all rows: {id, outcome, prompt, reasons, text} a row, and a column a score, null where it has none.
  async function readIndex(receive) {
    const rows = [];
    const scores = new Map();
    const files = Array.from({ length: settings.indexes }, (_, number) => load(indexFile(number)));
    for (const file of files) {
      const columns = await file;
      const start = rows.length;
      columns.id.forEach((id, at) => {
        const [prompt, reasons] = [columns.prompt[at], columns.reasons[at]];
        const text = [prompt, id, ...reasons].join("\n").toLowerCase();
        rows.push({ number: start + at, id, outcome: columns.outcome[at], prompt, reasons, text });
      });
      for (const key of Object.keys(columns.scores)) {
        if (!scores.has(key)) scores.set(key, []);
        columns.scores[key].forEach((value, at) => { scores.get(key)[start + at] = value; });
      }
      receive(rows, scores);
    }
    for (const values of scores.values()) for (let at = 0; at < rows.length; at++) values[at] ??= null;
    return { rows, scores };
  }

  // What is seen of a row: {rgb, depth, camera, facts, pointcloud, traceback}, each only where there is one.
  async function shown(number) {
    const block = Math.floor(number / settings.blockRows);
    let promise = blocks.get(block);
    if (promise) blocks.delete(block);
    else promise = load(rowsFile(block));
    blocks.set(block, promise);
    promise.catch(() => blocks.delete(block)); // so that it is tried again
    for (const oldest of blocks.keys()) {
      if (blocks.size <= KEPT_BLOCKS) break;
      blocks.delete(oldest);
    }
    return (await promise)[number % settings.blockRows];
  }

  return { settings, readIndex, shown, script };
})();
