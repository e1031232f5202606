// <patch-viewer>: two pictures under a slider, with zoom, an overlay and a difference view.
// Attributes: before, after, overlay, difference (URLs; all but `before` may be absent), width, height (pixels shown).
(() => {
  if (customElements.get("patch-viewer")) return;

  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  const STYLE = `
    :host { display: block; font: 14px/1.4 system-ui, sans-serif; }
    .stage { position: relative; overflow: hidden; margin: 0 auto; border-radius: 10px; user-select: none;
      background: repeating-conic-gradient(#8883 0 25%, #8881 0 50%) 0 0 / 20px 20px; touch-action: pan-y; cursor: ew-resize; }
    .stage.zoomed { touch-action: none; cursor: grab; }
    .pane { position: absolute; inset: 0; pointer-events: none; }
    img { position: absolute; inset: 0; width: 100%; height: 100%; transform-origin: 0 0; max-width: none; }
    .crisp img.photo { image-rendering: pixelated; }
    .tag { position: absolute; top: 10px; padding: 2px 10px; border-radius: 99px; background: #000a; color: #fff;
      font-size: 12px; pointer-events: none; }
    .tag.left { left: 10px; } .tag.right { right: 10px; }
    .handle { position: absolute; top: 0; bottom: 0; width: 44px; margin-left: -22px; padding: 0; border: 0;
      background: none; cursor: ew-resize; touch-action: none; }
    .handle::before { content: ""; position: absolute; inset: 0 21px; background: #fff; box-shadow: 0 0 4px #0008; }
    .handle::after { content: "◂ ▸"; position: absolute; top: 50%; left: 2px; width: 40px; height: 40px; line-height: 40px;
      margin-top: -20px; border-radius: 50%; background: #fff; color: #222; text-align: center; font-size: 13px;
      letter-spacing: -1px; box-shadow: 0 1px 6px #0007; }
    .handle:focus-visible::after { outline: 3px solid #2563eb; }
    .bar { display: flex; flex-wrap: wrap; gap: 6px; justify-content: center; margin-top: 10px; }
    .bar button { min-width: 40px; min-height: 36px; padding: 0 12px; border: 1px solid #8886; border-radius: 8px; background: none;
      color: inherit; font: inherit; cursor: pointer; }
    .bar button:hover { border-color: #2563eb; }
    .bar button[aria-pressed=true] { background: #2563eb; border-color: #2563eb; color: #fff; }
    .bar .gap { width: 10px; }
    [hidden] { display: none !important; }
  `;

  const MARKUP = `
    <style>${STYLE}</style>
    <div class="stage">
      <div class="pane"><img class="photo before" alt="before" draggable="false"></div>
      <div class="pane clipped">
        <img class="photo after" alt="after" draggable="false"><img class="difference" alt="difference" draggable="false" hidden>
      </div>
      <div class="pane"><img class="overlay" alt="difficulty map" draggable="false" hidden></div>
      <span class="tag left">Before</span><span class="tag right">After</span>
      <button class="handle" role="slider" aria-label="Divide between before and after"
        aria-valuemin="0" aria-valuemax="100"></button>
    </div>
    <div class="bar">
      <button class="out" aria-label="Zoom out">−</button><button class="in" aria-label="Zoom in">+</button>
      <button class="fit">Fit</button><button class="full">100 %</button><span class="gap"></span>
      <button class="show-overlay" aria-pressed="false">Difficulty map</button>
      <button class="show-difference" aria-pressed="false">Difference</button>
    </div>`;

  class PatchViewer extends HTMLElement {
    static observedAttributes = ["before", "after", "overlay", "difference", "width", "height"];

    connectedCallback() {
      if (this.shadowRoot) return;
      const root = this.attachShadow({ mode: "open" });
      root.innerHTML = MARKUP;
      this.find = (name) => root.querySelector(`.${name}`);
      this.fingers = new Map();
      this.stage = this.find("stage");
      this.listen();
      this.load();
      new ResizeObserver(() => this.draw()).observe(this.stage);
    }

    attributeChangedCallback() {
      if (!this.stage || this.changed) return;
      this.changed = true;
      queueMicrotask(() => {
        this.changed = false;
        this.load();
      });
    }

    load() {
      this.width = Number(this.getAttribute("width"));
      this.height = Number(this.getAttribute("height"));
      this.split = 0.5;
      this.zoom = 1;
      this.x = this.y = 0;
      this.stage.style.aspectRatio = `${this.width} / ${this.height}`;
      this.stage.style.width = `min(100%, calc(60vh * ${this.width / this.height}))`;
      for (const name of ["before", "after", "overlay", "difference"]) {
        const image = this.find(name);
        if (this.hasAttribute(name)) image.src = this.getAttribute(name);
        else image.removeAttribute("src");
      }
      for (const name of ["overlay", "difference"]) this.show(name, false);
      const done = this.hasAttribute("after");
      for (const name of ["handle", "left", "right", "clipped"]) this.find(name).hidden = !done;
      this.find("show-overlay").hidden = !this.hasAttribute("overlay");
      this.find("show-difference").hidden = !this.hasAttribute("difference");
      this.draw();
    }

    listen() {
      const { stage } = this;
      const on = (name, action) => this.find(name).addEventListener("click", action);
      const middle = () => [stage.clientWidth / 2, stage.clientHeight / 2];
      on("in", () => this.zoomTo(this.zoom * 1.5, ...middle()));
      on("out", () => this.zoomTo(this.zoom / 1.5, ...middle()));
      on("fit", () => this.zoomTo(1, 0, 0));
      on("full", () => this.zoomTo(this.pixelZoom, ...middle()));
      on("show-overlay", () => this.show("overlay", this.find("overlay").hidden));
      on("show-difference", () => this.show("difference", this.find("difference").hidden));
      stage.addEventListener("wheel", (event) => {
        event.preventDefault();
        const box = stage.getBoundingClientRect();
        this.zoomTo(this.zoom * Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
      }, { passive: false });
      stage.addEventListener("dblclick", (event) => {
        const box = stage.getBoundingClientRect();
        this.zoomTo(this.zoom > 1 ? 1 : Math.max(2, this.pixelZoom), event.clientX - box.left, event.clientY - box.top);
      });
      stage.addEventListener("pointerdown", (event) => {
        this.sliding = event.target === this.find("handle") || this.zoom === 1;
        this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
        stage.setPointerCapture(event.pointerId);
        if (this.fingers.size === 1) this.drag(event, 0, 0);
      });
      stage.addEventListener("pointermove", (event) => {
        const before = this.fingers.get(event.pointerId);
        if (!before) return;
        const other = [...this.fingers].find(([id]) => id !== event.pointerId);
        this.fingers.set(event.pointerId, [event.clientX, event.clientY]);
        if (other) this.pinch(before, [event.clientX, event.clientY], other[1]);
        else this.drag(event, event.clientX - before[0], event.clientY - before[1]);
      });
      for (const kind of ["pointerup", "pointercancel"]) {
        stage.addEventListener(kind, (event) => this.fingers.delete(event.pointerId));
      }
      this.find("handle").addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
        if (step === undefined) return;
        event.preventDefault();
        this.split = clamp(this.split + step, 0, 1);
        this.draw();
      });
    }

    get pixelZoom() {
      return this.width / (this.stage.clientWidth || 1);
    }

    drag(event, dx, dy) {
      if (this.sliding) {
        const box = this.stage.getBoundingClientRect();
        this.split = clamp((event.clientX - box.left) / box.width, 0, 1);
      } else {
        this.x += dx;
        this.y += dy;
      }
      this.draw();
    }

    pinch(before, now, other) {
      const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
      const box = this.stage.getBoundingClientRect();
      const [x, y] = [(now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top];
      this.zoomTo((this.zoom * distance(now, other)) / distance(before, other), x, y);
    }

    zoomTo(zoom, x, y) {
      const next = clamp(zoom, 1, Math.max(8, 8 * this.pixelZoom));
      this.x = x - ((x - this.x) * next) / this.zoom;
      this.y = y - ((y - this.y) * next) / this.zoom;
      this.zoom = next;
      this.draw();
    }

    show(name, visible) {
      this.find(name).hidden = !visible;
      this.find(`show-${name}`).setAttribute("aria-pressed", String(visible));
      this.draw();
    }

    draw() {
      const { clientWidth: width, clientHeight: height } = this.stage;
      this.x = clamp(this.x, width * (1 - this.zoom), 0);
      this.y = clamp(this.y, height * (1 - this.zoom), 0);
      for (const image of this.shadowRoot.querySelectorAll("img")) {
        image.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.zoom})`;
      }
      this.stage.classList.toggle("zoomed", this.zoom > 1);
      this.stage.classList.toggle("crisp", this.zoom > 3 * this.pixelZoom);
      this.find("clipped").style.clipPath = `inset(0 0 0 ${this.split * 100}%)`;
      const handle = this.find("handle");
      handle.style.left = `${this.split * 100}%`;
      handle.setAttribute("aria-valuenow", String(Math.round(this.split * 100)));
      this.find("right").textContent = this.find("difference").hidden ? "After" : "Difference × 4";
    }
  }

  customElements.define("patch-viewer", PatchViewer);
})();
