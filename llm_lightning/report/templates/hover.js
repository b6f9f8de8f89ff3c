"use strict";
// Shows each curve's value where the pointer is. The values are read from the drawn lines, so that none stands twice.
for (const svg of document.querySelectorAll(".chart > svg")) {
  const [x0, x1] = svg.dataset.x.split(" ").map(Number);
  const [y0, y1] = svg.dataset.y.split(" ").map(Number);
  const [left, right, top, bottom] = svg.dataset.plot.split(" ").map(Number);
  const curves = [...svg.querySelectorAll("path.line")].filter((path) => path.dataset.label).map((path) => ({
    label: path.dataset.label,
    color: [...path.classList].find((name) => /^s\d$/.test(name)).replace("s", "c"),
    points: path.getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number)),
  }));
  const tip = document.createElement("div");
  tip.className = "tip";
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  const digits = (value) => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : value.toPrecision(4).replace(/(\.\d*?)0+($|e)/, "$1$2").replace(/\.($|e)/, "$1");
  const hide = () => { tip.remove(); cursor.remove(); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    if (at < left - 4 || at > right + 4) return hide();
    const nearest = curves.map(({ points }) => points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    const place = nearest.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)[0];
    for (const [name, value] of [["x1", place], ["x2", place], ["y1", top], ["y2", bottom]]) cursor.setAttribute(name, value);
    svg.append(cursor);
    tip.replaceChildren();
    const head = document.createElement("div");
    head.textContent = `${digits(x0 + (place - left) / (right - left) * (x1 - x0))} ${svg.dataset.unit}`;
    tip.append(head);
    curves.forEach(({ label, color }, i) => {
      if (Math.abs(nearest[i][0] - place) > 12) return;
      const row = document.createElement("div");
      row.className = `swatch ${color}`;
      row.textContent = `${label} ${digits(y0 + (bottom - nearest[i][1]) / (bottom - top) * (y1 - y0))}`;
      tip.append(row);
    });
    svg.parentElement.append(tip);
    const width = tip.offsetWidth, middle = place / svg.viewBox.baseVal.width * box.width;
    tip.style.left = `${middle + 12 + width < box.width ? middle + 12 : Math.max(0, middle - 12 - width)}px`;
    tip.style.top = "34px";
  });
}
