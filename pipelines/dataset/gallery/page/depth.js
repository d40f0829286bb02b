"use strict";
// Depth as numbers: unpacked once per row (images.py packs it), then coloured on demand.
const Depth = (() => {
  const unpacked = new WeakMap(); // packed depth -> promise of {width, height, values}
  const nearest = Data.settings.nearest;

  async function inflate(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function read({ width, height, data }) {
    const bytes = await inflate(data);
    const count = width * height;
    const values = new Uint16Array(count);
    for (let at = 0; at < count; at++) {
      const coded = bytes[at] | (bytes[count + at] << 8);
      const left = at % width ? values[at - 1] : 0;
      const above = at >= width ? values[at - width] : 0;
      const corner = at % width && at >= width ? values[at - width - 1] : 0;
      values[at] = ((coded >> 1) ^ -(coded & 1)) + left + above - corner;
    }
    return { width, height, values };
  }

  // Promise of {width, height, values}: 0 is a hole, 1 is farthest, `nearest` is nearest.
  function unpack(packed) {
    if (!unpacked.has(packed)) unpacked.set(packed, read(packed));
    return unpacked.get(packed);
  }

  // Relative disparity in [0, 1], or null for a hole.
  const disparity = (value) => (value ? (value - 1) / (nearest - 1) : null);

  function draw(canvas, grid) {
    canvas.width = grid.width;
    canvas.height = grid.height;
    const image = new ImageData(grid.width, grid.height);
    const table = Colours.table();
    grid.values.forEach((value, at) => {
      if (!value) return; // holes are transparent
      const entry = Math.round(disparity(value) * (Colours.entries - 1)) * 3;
      image.data[at * 4] = table[entry];
      image.data[at * 4 + 1] = table[entry + 1];
      image.data[at * 4 + 2] = table[entry + 2];
      image.data[at * 4 + 3] = 255;
    });
    // The option keeps small canvases, hundreds of them, out of the graphics memory.
    canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  }

  return { unpack, disparity, draw, nearest };
})();
