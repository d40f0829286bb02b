"use strict";
// The point cloud of a row, from its depth at the gallery's size, its camera and its range. Mouse, touch and keys rotate it.
const Points = (() => {
  const figure = document.getElementById("points");
  const canvas = document.getElementById("view");
  const note = document.getElementById("points-note");
  const count = document.getElementById("points-count");
  const size = document.getElementById("point-size");
  const asDepth = document.getElementById("point-depth");
  const edges = document.getElementById("point-edges");
  const VERTEX = `
    attribute vec3 shade;
    uniform float spacing; uniform float pixels; uniform float scale;
    varying vec2 place; varying vec3 colour;
    void main() {
      place = uv; colour = shade;
      vec4 seen = modelViewMatrix * vec4(position, 1.0);
      gl_Position = projectionMatrix * seen;
      gl_PointSize = clamp(scale * spacing * -position.z * pixels / max(-seen.z, 1e-6), 1.0, 64.0);
    }`;
  const FRAGMENT = `
    uniform sampler2D rgb; uniform float depthShare;
    varying vec2 place; varying vec3 colour;
    void main() {
      vec2 off = gl_PointCoord - 0.5;
      if (dot(off, off) > 0.25) discard;
      gl_FragColor = vec4(mix(texture2D(rgb, place).rgb, colour, depthShare), 1.0);
    }`;
  let stage = null; // renderer, scene, camera, controls, material, cloud
  let now = null; // the current row: {shown, depth}
  let waiting = null;

  // Depth in metres: z = 1 / (A + B d), as in the dataset card.
  function metres(disparity, [, , , , , , near, far]) {
    return 1 / (1 / far + (1 / near - 1 / far) * disparity);
  }

  // {position, uv, value} in the axes of three.js (x right, y up, z backward), from x right, y down, z forward.
  function lift({ width, height, values }, camera, threshold) {
    const [fx, fy, cx, cy, fullWidth, fullHeight] = camera;
    const z = Float32Array.from(values, (value) => (value ? metres(Depth.disparity(value), camera) : NaN));
    const isEdge = (at, x, y) => {
      let [low, high] = [z[at], z[at]];
      for (let dy = -1; dy <= 1; dy++) {
        for (let dx = -1; dx <= 1; dx++) {
          if (x + dx < 0 || x + dx >= width || y + dy < 0 || y + dy >= height) continue;
          const other = z[at + dy * width + dx];
          if (other < low) low = other;
          if (other > high) high = other;
        }
      }
      return high - low > threshold * low;
    };
    const [position, uv, value] = [[], [], []];
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        if (Number.isNaN(z[at]) || (threshold && isEdge(at, x, y))) continue;
        const [u, v] = [(x + 0.5) / width, (y + 0.5) / height];
        position.push(((u * fullWidth - cx) / fx) * z[at], -((v * fullHeight - cy) / fy) * z[at], -z[at]);
        uv.push(u, 1 - v);
        value.push(Depth.disparity(values[at]));
      }
    }
    return { position, uv, value };
  }

  async function open() {
    await (waiting ??= Data.script("vendor/three.min.js"));
    if (stage) return;
    const renderer = new THREE.WebGLRenderer({ canvas, antialias: true, alpha: true, powerPreference: "low-power" });
    const camera = new THREE.PerspectiveCamera(50, 1, 0.01, 1000);
    const controls = new THREE.OrbitControls(camera, canvas);
    controls.zoomToCursor = true;
    const material = new THREE.ShaderMaterial({
      vertexShader: VERTEX,
      fragmentShader: FRAGMENT,
      uniforms: {
        rgb: { value: null }, depthShare: { value: 0 }, spacing: { value: 0 }, pixels: { value: 1 }, scale: { value: 1 },
      },
    });
    stage = { renderer, camera, controls, material, scene: new THREE.Scene(), cloud: null };
    controls.addEventListener("change", draw);
    new ResizeObserver(resize).observe(canvas.parentElement);
  }

  function resize() {
    if (!stage || !canvas.parentElement.clientWidth) return;
    const { clientWidth: width, clientHeight: height } = canvas.parentElement;
    stage.renderer.setPixelRatio(Math.min(2, devicePixelRatio));
    stage.renderer.setSize(width, height, false);
    stage.camera.aspect = width / height;
    stage.camera.updateProjectionMatrix();
    draw();
  }

  function draw() {
    if (!stage?.cloud) return;
    const { renderer, scene, camera, material } = stage;
    const angle = (camera.fov * Math.PI) / 360;
    material.uniforms.pixels.value = renderer.domElement.height / 2 / Math.tan(angle);
    material.uniforms.scale.value = Number(size.value);
    material.uniforms.depthShare.value = asDepth.checked || !now.shown.rgb ? 1 : 0;
    renderer.render(scene, camera);
  }

  // Place the camera near the position of the image, a little to the side and above, and so far back that most points are
  // visible; showing all of them would make a scene in front of a far wall small. The view rotates about the harmonic mean
  // of depth, where images have most detail.
  function reset() {
    if (!stage?.cloud) return;
    resize();
    const { camera, controls, cloud } = stage;
    const [, fy, , , , height] = now.shown.camera;
    const place = cloud.geometry.attributes.position;
    let inverse = 0;
    for (let at = 0; at < place.count; at++) inverse -= 1 / place.getZ(at) / place.count;
    const pivot = 1 / inverse || 1;
    const middle = new THREE.Vector3(0, 0, -pivot);
    const [yaw, pitch] = [-0.27, 0.13];
    const towards = new THREE.Vector3(Math.sin(yaw) * Math.cos(pitch), Math.sin(pitch), Math.cos(yaw) * Math.cos(pitch));
    const right = new THREE.Vector3(0, 1, 0).cross(towards).normalize();
    const up = towards.clone().cross(right);
    camera.fov = Math.min(70, (2 * Math.atan(height / 2 / fy) * 180) / Math.PI);
    const tangent = Math.tan((camera.fov * Math.PI) / 360);
    const point = new THREE.Vector3();
    const needed = new Float32Array(place.count); // distances from which each point is inside the image
    for (let at = 0; at < place.count; at++) {
      point.fromBufferAttribute(place, at).sub(middle);
      const wide = Math.max(Math.abs(point.dot(right)) / camera.aspect, Math.abs(point.dot(up)));
      needed[at] = wide / tangent + point.dot(towards);
    }
    const most = needed.sort()[Math.floor(0.97 * (place.count - 1))] || 0;
    const distance = Math.min(1.3, Math.max(1.05, (1.03 * most) / pivot)) * pivot;
    camera.near = pivot / 1000;
    camera.far = pivot * 1000;
    controls.target.copy(middle);
    camera.position.copy(middle).addScaledVector(towards, distance);
    camera.updateProjectionMatrix();
    controls.update();
    draw();
  }

  function textureOf(source) {
    const image = new Image();
    const texture = new THREE.Texture(image);
    image.onload = () => { texture.needsUpdate = true; draw(); };
    image.src = source ? `data:image/webp;base64,${source}` : "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";
    return texture;
  }

  function build() {
    const { shown, depth } = now;
    const { scene, material } = stage;
    // A step of the gallery's grid spans several pixels of the image, so slopes change by that factor more.
    const step = Math.max(1, shown.camera[4] / depth.width);
    const threshold = edges.checked ? 0 : Data.settings.edgeThreshold * step;
    const { position, uv, value } = lift(depth, shown.camera, threshold);
    const table = Colours.table();
    const shade = new Uint8Array(value.length * 3);
    value.forEach((disparity, at) => {
      const entry = Math.round(disparity * (Colours.entries - 1)) * 3;
      for (let c = 0; c < 3; c++) shade[at * 3 + c] = table[entry + c];
    });
    const geometry = new THREE.BufferGeometry();
    geometry.setAttribute("position", new THREE.BufferAttribute(Float32Array.from(position), 3));
    geometry.setAttribute("uv", new THREE.BufferAttribute(Float32Array.from(uv), 2));
    geometry.setAttribute("shade", new THREE.BufferAttribute(shade, 3, true));
    if (stage.cloud) {
      scene.remove(stage.cloud);
      stage.cloud.geometry.dispose();
    }
    stage.cloud = new THREE.Points(geometry, material);
    scene.add(stage.cloud);
    material.uniforms.spacing.value = step / shown.camera[0];
    count.textContent = `${value.length.toLocaleString("en")} points`;
  }

  async function show(shown, depth) {
    now = { shown, depth };
    const mine = now;
    figure.hidden = !depth;
    if (!depth) return;
    note.textContent = "";
    if (!shown.camera) {
      note.textContent = "This row has no camera, so its depth cannot be shown as points.";
      return;
    }
    try {
      await open();
    } catch (error) {
      note.textContent = waiting && !window.THREE ? error.message : "This browser has no WebGL, which is needed to show points.";
      if (!window.THREE) waiting = null;
      return;
    }
    if (now !== mine) return;
    stage.material.uniforms.rgb.value?.dispose();
    stage.material.uniforms.rgb.value = textureOf(shown.rgb);
    build();
    reset();
  }

  function refresh() {
    if (!stage || !now?.depth) return;
    build();
    draw();
  }

  function turn(yaw, pitch, zoom) {
    const { camera, controls } = stage;
    const offset = camera.position.clone().sub(controls.target);
    const radius = offset.length() * zoom;
    const polar = Math.min(Math.PI - 0.01, Math.max(0.01, Math.acos(offset.y / offset.length()) + pitch));
    const around = Math.atan2(offset.x, offset.z) + yaw;
    camera.position.copy(controls.target).add(offset.set(
      radius * Math.sin(polar) * Math.sin(around), radius * Math.cos(polar), radius * Math.sin(polar) * Math.cos(around),
    ));
    controls.update();
    draw();
  }

  canvas.addEventListener("keydown", (event) => {
    const act = {
      ArrowLeft: [-0.1, 0, 1], ArrowRight: [0.1, 0, 1], ArrowUp: [0, -0.1, 1], ArrowDown: [0, 0.1, 1],
      "+": [0, 0, 0.9], "=": [0, 0, 0.9], "-": [0, 0, 1.1],
    }[event.key];
    if (!stage?.cloud || (!act && event.key !== "0")) return;
    event.preventDefault();
    event.stopPropagation();
    if (act) turn(...act);
    else reset();
  });
  document.getElementById("reset").addEventListener("click", reset);
  size.addEventListener("input", draw);
  asDepth.addEventListener("change", draw);
  edges.addEventListener("change", refresh);
  return { show, refresh, metres, lift };
})();
