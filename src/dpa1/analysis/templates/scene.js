// Scenes that one can turn: points with labels and lines, in parallel projection. Data stand in a script element of type
// application/json: {points: [[x, y, z, radius, colour, label, title]…], lines: [[x, y, z, x, y, z, colour]…]}.
"use strict";
function scene(canvas) {
  const data = JSON.parse(document.getElementById(canvas.dataset.scene).textContent);
  const caption = canvas.parentElement.querySelector(".caption");
  const about = caption.textContent;
  const every = data.points.map(p => p.slice(0, 3)).concat(...data.lines.map(l => [l.slice(0, 3), l.slice(3, 6)]));
  const middle = [0, 1, 2].map(k => (Math.min(...every.map(p => p[k])) + Math.max(...every.map(p => p[k]))) / 2);
  const largest = Math.max(0, ...data.points.map(p => p[3]));  // a point alone does not fill the view
  const reach = Math.max(1e-9, 4 * largest, ...every.map(p => Math.hypot(...p.map((x, k) => x - middle[k])))) + largest;
  let axes, zoom, placed = [];
  function reset() { axes = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]; zoom = 1; turn(0.5, 0.35); }
  function turn(across, down) {
    const spin = (i, j, angle) => {
      const c = Math.cos(angle), s = Math.sin(angle), a = axes[i], b = axes[j];
      axes[i] = a.map((x, k) => c * x + s * b[k]);
      axes[j] = a.map((x, k) => c * b[k] - s * x);
    };
    spin(0, 2, across);
    spin(1, 2, -down);
    draw();
  }
  function draw() {
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const scale = zoom * 0.46 * Math.min(width, height) / reach;
    const project = p => {
      const v = axes.map(a => a.reduce((sum, x, k) => sum + x * (p[k] - middle[k]), 0));
      return [width / 2 + scale * v[0], height / 2 - scale * v[1], v[2]];
    };
    const things = data.lines.map(l => {
      const a = project(l.slice(0, 3)), b = project(l.slice(3, 6));
      return {depth: (a[2] + b[2]) / 2, line: [a, b], colour: l[6]};
    });
    data.points.forEach((p, k) => {
      const [x, y, depth] = project(p);
      things.push({depth, x, y, radius: Math.max(2.5, p[3] * scale), point: p, k});
    });
    things.sort((a, b) => a.depth - b.depth);
    placed = [];
    for (const t of things) {
      pen.globalAlpha = 0.45 + 0.55 * (t.depth + reach) / (2 * reach);
      if (t.line) {
        pen.strokeStyle = t.colour;
        pen.lineWidth = 1.5;
        pen.beginPath();
        pen.moveTo(t.line[0][0], t.line[0][1]);
        pen.lineTo(t.line[1][0], t.line[1][1]);
        pen.stroke();
        continue;
      }
      pen.fillStyle = t.point[4];
      pen.strokeStyle = "#0006";
      pen.lineWidth = 1;
      pen.beginPath();
      pen.arc(t.x, t.y, t.radius, 0, 2 * Math.PI);
      pen.fill();
      pen.stroke();
      placed.push(t);
    }
    for (const t of placed.filter(t => t.point[5])) {  // after all points, so that none hides a label
      pen.globalAlpha = 0.35 + 0.65 * (t.depth + reach) / (2 * reach);
      pen.font = "600 12px system-ui, sans-serif";
      pen.lineWidth = 3;
      pen.strokeStyle = "#fffc";
      pen.fillStyle = "#16202a";
      pen.strokeText(t.point[5], t.x + t.radius + 1, t.y + 4);
      pen.fillText(t.point[5], t.x + t.radius + 1, t.y + 4);
    }
    pen.globalAlpha = 1;
    canvas.dataset.drawn = placed.length;
  }
  let held = null;
  canvas.addEventListener("pointerdown", e => { held = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointercancel", () => { held = null; });
  canvas.addEventListener("pointermove", e => {
    if (held) {
      turn((held[0] - e.clientX) / 120, (held[1] - e.clientY) / 120);
      held = [e.clientX, e.clientY];
      return;
    }
    const box = canvas.getBoundingClientRect();
    const found = placed.filter(t => Math.hypot(e.clientX - box.left - t.x, e.clientY - box.top - t.y) < t.radius + 4).pop();
    caption.textContent = found ? found.point[6] : about;
  });
  const grow = factor => { zoom = Math.min(12, Math.max(0.3, zoom * factor)); draw(); };
  canvas.addEventListener("keydown", e => {
    const actions = {ArrowLeft: () => turn(0.15, 0), ArrowRight: () => turn(-0.15, 0), ArrowUp: () => turn(0, 0.15),
      ArrowDown: () => turn(0, -0.15), "+": () => grow(1.2), "-": () => grow(1 / 1.2), "0": reset};
    if (actions[e.key]) { actions[e.key](); e.preventDefault(); }
  });
  canvas.parentElement.querySelectorAll("button").forEach(b => b.addEventListener("click", () =>
    b.value === "0" ? reset() : grow(Number(b.value))));
  new ResizeObserver(draw).observe(canvas);
  reset();
}
document.querySelectorAll("canvas[data-scene]").forEach(scene);
