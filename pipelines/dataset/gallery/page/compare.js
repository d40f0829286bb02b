"use strict";
// Image and depth on top of each other with a slider, and the depth under the pointer.
const Compare = (() => {
  const figure = document.getElementById("compare");
  const frame = figure.querySelector(".frame");
  const rgb = document.getElementById("compare-rgb");
  const canvas = document.getElementById("compare-depth");
  const slider = document.getElementById("wipe");
  const probe = document.getElementById("probe");
  let grid = null;
  let camera = null;

  const wipe = () => frame.style.setProperty("--wipe", `${slider.value}%`);

  function show(row, shown, depth) {
    grid = depth;
    camera = shown.camera;
    probe.textContent = "";
    figure.hidden = !shown.rgb && !depth;
    const words = row.prompt || row.id;
    rgb.hidden = !shown.rgb;
    rgb.alt = `Image: ${words}`;
    if (shown.rgb) rgb.src = `data:image/webp;base64,${shown.rgb}`;
    else rgb.removeAttribute("src");
    canvas.hidden = !depth;
    canvas.setAttribute("aria-label", `Depth: ${words}`);
    if (depth) Depth.draw(canvas, depth);
    const [, , , , width, height] = camera || [];
    frame.style.setProperty("--aspect", width ? width / height : depth ? depth.width / depth.height : 1);
    slider.value = shown.rgb ? 50 : 0;
    slider.hidden = !shown.rgb || !depth;
    wipe();
  }

  function recolour() {
    if (grid) Depth.draw(canvas, grid);
  }

  function read(event) {
    if (!grid) return;
    const box = frame.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
    const value = grid.values[Math.floor(y * grid.height) * grid.width + Math.floor(x * grid.width)];
    const disparity = Depth.disparity(value);
    if (disparity === null) {
      probe.textContent = "no depth here";
      return;
    }
    const metres = camera && ` · z ${Points.metres(disparity, camera).toFixed(2)}`;
    probe.textContent = `disparity ${disparity.toFixed(3)}${metres || ""}`;
  }

  slider.addEventListener("input", wipe);
  frame.addEventListener("pointermove", read);
  frame.addEventListener("pointerleave", () => { probe.textContent = ""; });
  return { show, recolour };
})();
