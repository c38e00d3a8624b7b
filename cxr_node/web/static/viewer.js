// The study page's viewer: a canvas with the radiograph, windowed here, the heat over it, outlines of lungs and regions.
//
// Greys come as PNG: of 8 bits, or of 16 as red (high byte) and green (low byte). Heat is a grey PNG, 255 where it is 1.
"use strict";

const WHITE = 65535;
// Plasma (matplotlib, CC0) at even steps, up to where the overlay's colours end: the yellows above turn green over grey.
const PLASMA = [
  [13, 8, 135], [65, 4, 157], [106, 0, 168], [143, 13, 164], [177, 42, 144], [204, 71, 120], [225, 100, 98], [242, 132, 75], [252, 166, 54],
  [252, 206, 37],
];

function plasma(share) {
  const at = Math.min(share, 1) * (PLASMA.length - 1.001);
  const index = Math.floor(at);
  const part = at - index;
  return PLASMA[index].map((value, channel) => Math.round(value + (PLASMA[index + 1][channel] - value) * part));
}

async function bytes(address) {
  const answer = await fetch(address, { credentials: "same-origin" });
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 300));
  return answer;
}

async function pixels(address) {
  const blob = await (await bytes(address)).blob();
  // neither colours nor alpha may be touched: these are numbers
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

class Viewer {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector(".stage canvas");
    this.context = this.canvas.getContext("2d");
    this.said = root.querySelector(".said");
    this.texts = JSON.parse(root.dataset.texts);
    this.shown = { lungs: true, regions: false, inverted: false };
    this.heat = Number(root.querySelector("#heat")?.value ?? 60) / 100;
    this.view = { scale: 1, x: 0, y: 0 };
    this.window = [0, WHITE];
  }

  async load() {
    try {
      this.about = await (await bytes(this.root.dataset.layers)).json();
      const radiograph = await pixels(`${this.root.dataset.layers}/radiograph.png`);
      this.greys = this.unpacked(radiograph);
      this.picture = new OffscreenCanvas(radiograph.width, radiograph.height);
      this.reset();
      if (this.about.heat) this.heatMap = this.coloured(await pixels(`${this.root.dataset.layers}/heat.png`));
    } catch (error) {
      this.said.textContent = this.texts.no_image.replace("{reason}", error.message.trim());
      this.said.hidden = false;
      return;
    }
    this.said.hidden = true;
    for (const name of ["heat", "lungs", "regions"]) {
      const there = name === "heat" ? this.about.heat : this.about[name].length > 0;
      for (const control of this.root.querySelectorAll(`[data-needs='${name}']`)) control.hidden = !there;
    }
    const why = this.root.querySelector(".why-no-heat");
    why.textContent = this.about.why_no_heat;
    why.hidden = !this.about.why_no_heat;
    const [left, right] = this.about.letters;
    this.root.querySelector(".letter-left").textContent = left;
    this.root.querySelector(".letter-right").textContent = right;
    this.listen();
    new ResizeObserver(() => this.resized()).observe(this.canvas.parentElement);
    this.resized();
    this.fit();
    this.root.dataset.ready = "yes";
  }

  unpacked(image) {
    const greys = new Uint16Array(image.width * image.height);
    const data = image.data;
    if (this.about.deep) for (let i = 0, j = 0; i < greys.length; i++, j += 4) greys[i] = (data[j] << 8) | data[j + 1];
    else for (let i = 0, j = 0; i < greys.length; i++, j += 4) greys[i] = data[j] * 257;
    return greys;
  }

  coloured(image) {
    const data = image.data;
    for (let i = 0; i < data.length; i += 4) {
      const heat = data[i];
      const [red, green, blue] = plasma(heat / 255);
      data[i] = red; data[i + 1] = green; data[i + 2] = blue; data[i + 3] = heat;
    }
    const canvas = new OffscreenCanvas(image.width, image.height);
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // Window: a table of all greys, then one pass over the pixels.
  paint() {
    const [low, high] = this.window;
    const table = new Uint8ClampedArray(WHITE + 1);
    const scale = 255 / Math.max(1, high - low);
    for (let grey = 0; grey <= WHITE; grey++) {
      const value = (grey - low) * scale;
      table[grey] = this.shown.inverted ? 255 - Math.min(255, Math.max(0, value)) : value;
    }
    const context = this.picture.getContext("2d");
    this.frame ??= context.createImageData(this.picture.width, this.picture.height);
    const out = new Uint32Array(this.frame.data.buffer);
    for (let i = 0; i < out.length; i++) {
      const value = table[this.greys[i]];
      out[i] = 0xff000000 | (value << 16) | (value << 8) | value;
    }
    context.putImageData(this.frame, 0, 0);
  }

  // The picture's size with square pixels, in units of its columns.
  get size() {
    const width = this.about.columns;
    return [width, this.about.rows * this.about.aspect];
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      const { context, view } = this;
      const [width, height] = this.size;
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.fillStyle = "#000";
      context.fillRect(0, 0, this.canvas.width, this.canvas.height);
      context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(this.picture, 0, 0, width, height);
      if (this.heatMap && this.heat > 0) {
        context.globalAlpha = this.heat;
        context.drawImage(this.heatMap, 0, 0, width, height);
        context.globalAlpha = 1;
      }
      if (this.shown.lungs) for (const lung of this.about.lungs) this.outline(lung.points, "#96e1eb", []);
      if (this.shown.regions) for (const points of this.about.regions) this.outline(points, "#ffd479", [6, 4]);
      this.tell();
    });
  }

  outline(points, colour, dash) {
    const { context, view } = this;
    const [width, height] = this.size;
    const pixel = (window.devicePixelRatio || 1) / view.scale;
    context.beginPath();
    points.forEach(([x, y], index) => context[index ? "lineTo" : "moveTo"](x * width, y * height));
    context.closePath();
    context.setLineDash(dash.map((part) => part * pixel));
    context.lineWidth = 1.6 * pixel;
    context.strokeStyle = colour;
    context.stroke();
    context.setLineDash([]);
  }

  tell() {
    const ratio = window.devicePixelRatio || 1;
    const share = (value) => Math.round((100 * value) / WHITE);
    const [low, high] = this.window;
    this.root.querySelector(".corner.bl").textContent =
      this.texts.window.replace("{centre}", share((low + high) / 2)).replace("{width}", share(high - low));
    this.root.querySelector(".corner.br").textContent =
      this.texts.zoom.replace("{percent}", Math.round((100 * this.view.scale) / ratio));
    Object.assign(this.root.dataset, {
      low: Math.round(this.window[0]), high: Math.round(this.window[1]), scale: this.view.scale.toFixed(4),
      x: Math.round(this.view.x), y: Math.round(this.view.y), heat: this.heat.toFixed(2),
      lungs: this.shown.lungs, regions: this.shown.regions, aspect: (this.size[0] / this.size[1]).toFixed(4),
    });
  }

  resized() {
    const ratio = window.devicePixelRatio || 1;
    const box = this.canvas.parentElement.getBoundingClientRect();
    if (!box.width) return;
    const [before, beforeHeight] = [this.canvas.width, this.canvas.height];
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    if (this.isFitted) this.fit();
    else { this.view.x += (this.canvas.width - before) / 2; this.view.y += (this.canvas.height - beforeHeight) / 2; }
    this.draw();
  }

  fit() {
    const [width, height] = this.size;
    this.view.scale = Math.min(this.canvas.width / width, this.canvas.height / height);
    this.view.x = (this.canvas.width - width * this.view.scale) / 2;
    this.view.y = (this.canvas.height - height * this.view.scale) / 2;
    this.isFitted = true;
    this.draw();
  }

  reset() {
    this.window = [...this.about.window];
    this.shown.inverted = false;
    this.pressed("invert", false);
    this.paint();
    this.draw();
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const [width, height] = this.size;
    const fitting = Math.min(this.canvas.width / width, this.canvas.height / height);
    const scale = Math.min(Math.max(this.view.scale * factor, fitting / 4), fitting * 40);
    const real = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * real, y: y - (y - this.view.y) * real };
    this.isFitted = false;
    this.draw();
  }

  move(x, y) {
    this.view.x += x;
    this.view.y += y;
    this.isFitted = false;
    this.draw();
  }

  // Shares of the whole range: x widens the window, y makes the picture brighter.
  windowBy(x, y) {
    const centre = (this.window[0] + this.window[1]) / 2 + y * WHITE * 0.5;
    const width = Math.min(Math.max((this.window[1] - this.window[0]) * Math.exp(x * 2), 256), 4 * WHITE);
    this.window = [centre - width / 2, centre + width / 2];
    this.paint();
    this.draw();
  }

  toggle(name) {
    this.shown[name] = !this.shown[name];
    this.pressed(name, this.shown[name]);
    this.draw();
  }

  pressed(name, is) { this.root.querySelector(`[data-do='${name}']`)?.setAttribute("aria-pressed", String(is)); }

  setHeat(share) {
    this.heat = Math.min(1, Math.max(0, share));
    const slider = this.root.querySelector("#heat");
    slider.value = String(Math.round(this.heat * 100));
    this.draw();
  }

  act(name) {
    const ways = {
      fit: () => this.fit(),
      reset: () => this.reset(),
      in: () => this.zoom(1.25),
      out: () => this.zoom(0.8),
      lungs: () => this.toggle("lungs"),
      regions: () => this.toggle("regions"),
      invert: () => {
        this.shown.inverted = !this.shown.inverted;
        this.pressed("invert", this.shown.inverted);
        this.paint();
        this.draw();
      },
    };
    ways[name]?.();
  }

  listen() {
    const { canvas } = this;
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (button) this.act(button.dataset.do);
    });
    this.root.querySelector("#heat")?.addEventListener("input", (event) => this.setHeat(Number(event.target.value) / 100));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const ratio = window.devicePixelRatio || 1;
      this.zoom(Math.exp(-event.deltaY / 500), event.offsetX * ratio, event.offsetY * ratio);
    }, { passive: false });
    const fingers = new Map();
    let spread = 0;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      spread = 0;
      canvas.focus({ preventScroll: true });
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const ratio = window.devicePixelRatio || 1;
      const [x, y] = [event.clientX - before[0], event.clientY - before[1]];
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (fingers.size === 2) { // two fingers: zoom and move
        const [first, second] = [...fingers.values()];
        const now = Math.hypot(first[0] - second[0], first[1] - second[1]);
        const box = canvas.getBoundingClientRect();
        const centre = [((first[0] + second[0]) / 2 - box.left) * ratio, ((first[1] + second[1]) / 2 - box.top) * ratio];
        if (spread) this.zoom(now / spread, ...centre);
        spread = now;
        this.move((x * ratio) / 2, (y * ratio) / 2);
      } else if (event.shiftKey || event.buttons & 6 || event.pointerType === "touch") {
        this.move(x * ratio, y * ratio);
      } else {
        this.windowBy(x / 400, -y / 400);
      }
    });
    canvas.addEventListener("dblclick", () => this.fit());
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const step = 40 * (window.devicePixelRatio || 1);
      const keys = {
        ArrowLeft: () => this.move(step, 0), ArrowRight: () => this.move(-step, 0),
        ArrowUp: () => this.move(0, step), ArrowDown: () => this.move(0, -step),
        "+": () => this.act("in"), "=": () => this.act("in"), "-": () => this.act("out"),
        0: () => this.fit(), r: () => this.reset(), i: () => this.act("invert"),
        w: () => this.windowBy(0, -0.03), s: () => this.windowBy(0, 0.03),
        a: () => this.windowBy(-0.05, 0), d: () => this.windowBy(0.05, 0),
        l: () => this.toggle("lungs"), g: () => this.toggle("regions"),
        h: () => { if (this.heat) { this.before = this.heat; this.setHeat(0); } else this.setHeat(this.before || 0.6); },
      };
      const act = keys[event.key] ?? keys[event.key.toLowerCase()];
      if (!act) return;
      event.preventDefault();
      act();
    });
  }
}

function scale() {
  const canvas = document.querySelector(".scale canvas");
  if (!canvas) return;
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    const share = x / (canvas.width - 1);
    const opacity = 0.6 * share;
    const [red, green, blue] = plasma(share).map((value) => Math.round(value * opacity + 128 * (1 - opacity)));
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  scale();
  for (const root of document.querySelectorAll(".viewer[data-layers]")) new Viewer(root).load();
});
