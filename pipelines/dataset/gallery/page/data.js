"use strict";
// The data files are scripts that call `gallery`, because a page on a disk may load nothing else. Blocks of rows are
// loaded when they are needed, and the least recently used blocks are dropped.
const Data = (() => {
  const settings = JSON.parse(document.getElementById("settings").textContent);
  const KEPT_BLOCKS = 150;
  const blocks = new Map(); // number -> promise of its rows, the most recently used last
  const arrived = new Map(); // file -> the value that it called with

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
      element.onerror = () => { element.remove(); reject(new Error(`${file} cannot be loaded: copy the whole gallery folder.`)); };
      document.head.append(element);
    });
  }

  async function load(file) {
    await script(file);
    if (!arrived.has(file)) throw new Error(`${file} belongs to another version of this page: reload the page.`);
    const value = arrived.get(file);
    arrived.delete(file);
    return value;
  }

  // Text and scores of all rows: {id, outcome, prompt, reasons, text} per row, and a column per score with null for none.
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

  // The fields of a row that are shown: {rgb, depth, camera, facts, pointcloud, traceback}, without missing ones.
  async function shown(number) {
    const block = Math.floor(number / settings.blockRows);
    let promise = blocks.get(block);
    if (promise) blocks.delete(block);
    else promise = load(rowsFile(block));
    blocks.set(block, promise);
    promise.catch(() => blocks.delete(block)); // so that it is retried
    for (const oldest of blocks.keys()) {
      if (blocks.size <= KEPT_BLOCKS) break;
      blocks.delete(oldest);
    }
    return (await promise)[number % settings.blockRows];
  }

  return { settings, readIndex, shown, script };
})();
