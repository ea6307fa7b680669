"use strict";
// The page is whole without this script; it adds the sliders, the order, the filter and the matches.
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const NOTICEABLE = 0.5; // standard deviations at which an attribute counts for the filter
  const FADE = 140; // milliseconds
  const of = (id) => document.getElementById(id);
  const cards = Object.keys(data.cards).map((id) => made(of(id), data.cards[id]));
  const byId = new Map(cards.map((card) => [card.id, card]));
  let seed = null; // the one sample that is shown, or all

  // ---- a card's stage: every sample at the slider's scale ----

  function made(element, facts) {
    const find = (selector) => element.querySelector(selector);
    const style = getComputedStyle(element);
    const given = (name) => Number(style.getPropertyValue(name));
    return {
      id: element.id, element, facts, visible: false, drawn: null, fading: 0,
      item: element.closest("li"), sheet: find(".strip img"), strip: find(".strip"), slider: find("input[type=range]"),
      canvas: find("canvas"), scale: find(".scale"), beyond: find(".beyond"), code: find("code"),
      heads: find(".scales").children, veils: find(".veils").children, seeds: find(".seeds").children,
      width: given("--width"), height: given("--height"), rows: given("--rows"),
    };
  }

  function sampled(card) {
    return seed !== null && seed < card.rows ? [seed] : [...Array(card.rows).keys()];
  }

  // How frames stand on the stage; a card has its height before anything is drawn, so that nothing moves later.
  function layout(card) {
    const shown = sampled(card), across = Math.ceil(Math.sqrt(shown.length)), down = Math.ceil(shown.length / across);
    const gap = Math.max(1, Math.round(card.width / 40));
    return { shown, across, gap, width: across * (card.width + gap) - gap, height: down * (card.height + gap) - gap };
  }

  function size(card) {
    const { width, height } = layout(card);
    Object.assign(card.canvas, { width, height });
    card.drawn = null;
  }

  function draw(card, stop, opacity) {
    const { shown, across, gap } = layout(card), context = card.canvas.getContext("2d");
    context.globalAlpha = opacity;
    shown.forEach((row, place) => {
      const x = (place % across) * (card.width + gap), y = Math.floor(place / across) * (card.height + gap);
      const from = [stop * card.width, row * card.height, card.width, card.height];
      context.drawImage(card.sheet, ...from, x, y, card.width, card.height);
    });
  }

  function show(card) {
    if (!card.visible) return;
    if (!card.sheet.complete || !card.sheet.naturalWidth) {
      card.sheet.addEventListener("load", () => show(card), { once: true });
      return;
    }
    const stop = card.slider.valueAsNumber, before = card.drawn;
    cancelAnimationFrame(card.fading);
    card.drawn = stop;
    if (before === null || before === stop || still.matches) return draw(card, stop, 1);
    const start = performance.now();
    const step = (now) => {
      const part = Math.min(1, Math.max(0, (now - start) / FADE));
      draw(card, before, 1);
      draw(card, stop, part);
      if (part < 1) card.fading = requestAnimationFrame(step);
    };
    card.fading = requestAnimationFrame(step);
  }

  // What a card says of where its slider stands.
  function tell(card) {
    const stop = card.slider.valueAsNumber, scale = card.facts.stops[stop], outside = card.facts.outside[stop];
    const warning = outside ? ", outside the range where images stay faithful" : "";
    card.slider.setAttribute("aria-valuetext", `scale ${scale}${warning}`);
    card.canvas.setAttribute("aria-label", `${card.facts.name}: ${sampled(card).length} samples at scale ${scale}`);
    card.scale.textContent = scale === "0" ? "scale 0, unshifted" : `scale ${scale}`;
    card.beyond.hidden = !outside;
    card.code.textContent = card.facts.snippet[stop];
    [...card.heads].forEach((head, place) => head.classList.toggle("at", place === stop));
    [...card.veils].forEach((veil, place) => veil.classList.toggle("at", place === stop));
  }

  function turn(card) {
    tell(card);
    show(card);
  }

  function pickSeed(value) {
    seed = value === "" ? null : Number(value);
    for (const card of cards) {
      const shown = sampled(card), one = shown.length === 1 && card.rows > 1;
      card.element.classList.toggle("one", one);
      card.element.style.setProperty("--seed", one ? shown[0] : 0);
      [...card.seeds].forEach((label, row) => (label.hidden = !shown.includes(row)));
      size(card);
      turn(card);
    }
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const card = byId.get(entry.target.id);
      card.visible = entry.isIntersecting;
      if (card.visible && card.drawn !== card.slider.valueAsNumber) show(card);
    }
  }, { rootMargin: "300px" });

  for (const card of cards) {
    card.slider.addEventListener("input", () => turn(card));
    card.strip.addEventListener("click", (event) => {
      const box = card.strip.getBoundingClientRect();
      const stop = Math.floor(((event.clientX - box.left) / box.width) * card.facts.stops.length);
      card.slider.value = stop;
      turn(card);
    });
    tell(card);
    size(card);
    watcher.observe(card.element);
  }

  // ---- order and filter ----

  function order(by) {
    const effect = by.startsWith("effect ") ? data.attributes[by.slice(7)] : null;
    const strength = (card) => Math.abs(card.facts.effects[effect] ?? -1);
    const compare = {
      score: (a, b) => (b.facts.score ?? -1) - (a.facts.score ?? -1),
      name: (a, b) => a.facts.name.localeCompare(b.facts.name, undefined, { numeric: true }),
    }[by] ?? ((a, b) => (effect === null ? 0 : strength(b) - strength(a)));
    const sorted = [...cards].sort((a, b) => compare(a, b) || a.facts.index - b.facts.index);
    // From the last to the first, so that a row of two cards stands where the better one belongs.
    for (const card of sorted.reverse()) card.item.parentElement.prepend(card.item);
  }

  function fits(card, words) {
    if (card.facts.name.toLowerCase().includes(words)) return true;
    return Object.entries(card.facts.effects).some(
      ([name, sd]) => Math.abs(sd) >= NOTICEABLE && name.toLowerCase().includes(words),
    );
  }

  function filter() {
    const words = of("filter").value.trim().toLowerCase();
    const fitting = new Set(cards.filter((card) => fits(card, words)).map((card) => card.item));
    for (const card of cards) card.item.hidden = !fitting.has(card.item);
    document.querySelector(".none").hidden = fitting.size > 0;
    const left = cards.filter((card) => !card.item.hidden).length;
    of("count").textContent = left === cards.length ? `${left} directions` : `${left} of ${cards.length} directions`;
  }

  of("sort").addEventListener("change", (event) => order(event.target.value));
  of("filter").addEventListener("input", filter);
  of("seed")?.addEventListener("change", (event) => pickSeed(event.target.value));
  filter();

  // ---- links to a card, also one that the filter hides ----

  function arrive(hash, behavior = "auto") {
    const card = byId.get(hash.slice(1));
    if (card && card.item.hidden) {
      of("filter").value = "";
      filter();
    }
    of(hash.slice(1))?.scrollIntoView({ block: "start", behavior });
  }
  addEventListener("hashchange", () => arrive(location.hash));
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (!link || /^(file|https?):$/.test(location.protocol)) return;
    event.preventDefault(); // in a frame made of text or a blob, a link to # leads to the page around it, or nowhere
    arrive(link.hash);
    of(link.hash.slice(1))?.focus({ preventScroll: true });
  });
  if (location.hash) arrive(location.hash, "instant");

  // ---- two sets: the picked direction and the one most like it ----

  function pick(card) {
    const match = byId.get(card.facts.alike);
    if (!match || card.element.classList.contains("picked")) return;
    for (const other of cards) other.element.classList.remove("picked", "matched");
    card.element.classList.add("picked");
    match.element.classList.add("matched");
  }

  for (const card of cards) {
    for (const kind of ["click", "input"]) card.element.addEventListener(kind, () => pick(card));
    card.slider.addEventListener("focus", () => pick(card));
  }

  // ---- copying, and the theme; a sandbox may forbid the clipboard, and always forbids storage ----

  function copy(card, button) {
    const said = (word) => {
      button.textContent = word;
      setTimeout(() => (button.textContent = "Copy"), 1600);
    };
    getSelection().selectAllChildren(card.code);
    // The old way first: it is all that a sandbox leaves, and the new one complains there.
    if (document.execCommand("copy")) return said("Copied");
    const written = navigator.clipboard?.writeText(card.code.textContent) ?? Promise.reject();
    written.then(() => said("Copied"), () => said("Selected"));
  }
  for (const card of cards) {
    const button = card.element.querySelector(".copy");
    button.addEventListener("click", () => copy(card, button));
  }

  const themes = [["", "as the system"], ["dark", "dark"], ["light", "light"]];
  let theme = 0;
  document.querySelector(".theme").addEventListener("click", (event) => {
    theme = (theme + 1) % themes.length;
    document.documentElement.dataset.theme = themes[theme][0];
    event.target.textContent = `Theme: ${themes[theme][1]}`;
  });
});
