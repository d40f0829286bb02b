"use strict";
// Colour maps from far to near. The lightness of inferno, viridis and grey rises evenly, so they work in grey and for
// colour-blind readers; turbo shows more steps. The stops are Matplotlib's.
const Colours = (() => {
  const STOPS = {
    inferno: "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    turbo: "30123b 4145ab 4675ed 39a2fc 1bcfd4 24eca6 61fc6c a4fc3b d1e834 f3c63a fe9b2d f36315 d93806 b11901 7a0402",
    viridis: "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    grey: "0a0a0a ffffff",
  };
  const ENTRIES = 256;
  const tables = {};

  function table(name) {
    if (tables[name]) return tables[name];
    const stops = STOPS[name].split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
    const values = new Uint8ClampedArray(ENTRIES * 3);
    for (let entry = 0; entry < ENTRIES; entry++) {
      const at = (entry / (ENTRIES - 1)) * (stops.length - 1);
      const low = Math.min(Math.floor(at), stops.length - 2);
      for (let c = 0; c < 3; c++) values[entry * 3 + c] = stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]);
    }
    return (tables[name] = values);
  }

  let current = "inferno";
  return {
    names: Object.keys(STOPS),
    get current() { return current; },
    choose(name) { if (name in STOPS) current = name; },
    table: () => table(current),
    entries: ENTRIES,
  };
})();
