// What the console's pages need of a script: one stream for each page, and the age of what it shows.
"use strict";

(() => {
  // The server ticks once a second. After so long without a tick it is lost.
  const LOST_MS = 2200;
  const loadedAt = performance.now();
  // When what the page shows was true, and when the server was heard last; by the page's own clock.
  let asOf = loadedAt - Number(document.body.dataset.age || 0);
  let heardAt = loadedAt;
  let isLive = false;
  // Why the server keeps this page current no longer, in its own words.
  let refusal = "";
  let problem = "";
  let lostAt = "";
  let shownAt = loadedAt;

  // An EventSource that can be paused: the listeners stay, and a hidden page has no stream.
  class Stream {
    constructor(url) {
      this.url = url;
      this.listeners = [];
      this.onopen = this.onerror = null;
      this.addEventListener("tick", (event) => tick(JSON.parse(event.data)));
      document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.resume()));
      if (!document.hidden) this.open();
    }
    get readyState() {
      return EventSource.CONNECTING;
    }
    addEventListener(name, listener) {
      this.listeners.push([name, listener]);
      this.source?.addEventListener(name, listener);
    }
    removeEventListener(name, listener) {
      this.listeners = this.listeners.filter((each) => each[0] !== name || each[1] !== listener);
      this.source?.removeEventListener(name, listener);
    }
    open() {
      this.close();
      const source = (this.source = new EventSource(this.url));
      for (const [name, listener] of this.listeners) source.addEventListener(name, listener);
      // An answer that is no stream ends an EventSource for good: tried again, as long as the page is there.
      source.onerror = () => {
        if (source.readyState !== EventSource.CLOSED || source !== this.source) return;
        this.later = setTimeout(() => this.open(), 2000);
        this.ask();
      };
    }
    // An EventSource does not tell with which status it was answered.
    async ask() {
      const answer = await fetch(this.url).catch(() => null);
      const isTold = answer && !answer.ok && answer.headers.get("content-type")?.startsWith("text/plain");
      if (answer?.status === 401) refusal = "You are signed out. Reload the page to sign in again.";
      else if (isTold) refusal = (await answer.text().catch(() => "")).slice(0, 300);
      else refusal = "";
      if (!isTold) answer?.body?.cancel();
      show();
    }
    resume() {
      heardAt = performance.now();
      this.open();
    }
    close() {
      clearTimeout(this.later);
      this.source?.close();
      this.source = null;
    }
  }

  function tick(about) {
    heardAt = performance.now();
    refusal = "";
    problem = about.problem || "";
    if (about.age !== undefined) {
      isLive = true;
      asOf = heardAt - about.age;
    }
    show();
  }

  function seconds(ms) {
    const s = Math.max(0, Math.round(ms / 1000));
    return s < 120 ? `${s} s` : `${Math.floor(s / 60)} min`;
  }

  function clock(ago) {
    return `${new Date(Date.now() - ago).toISOString().slice(11, 19)} UTC`;
  }

  function text(element, content) {
    if (element.textContent !== content) element.textContent = content;
  }

  function show() {
    const now = performance.now();
    const age = document.getElementById("age");
    const lost = document.getElementById("lost");
    if (!age || !lost) return;
    // A page that was hidden, or a machine that slept: the stream is given its time before it counts as lost.
    if (document.hidden || now - shownAt > 1500) heardAt = Math.max(heardAt, now - 500);
    shownAt = now;
    text(age, `Data is ${seconds(now - asOf)} old`);
    const silent = now - heardAt > LOST_MS;
    age.dataset.state = silent || problem ? "lost" : isLive ? "live" : "still";
    lost.hidden = !(silent || problem);
    // Said once, and not again each second: it is read aloud.
    lostAt = silent ? lostAt || clock(now - heardAt) : "";
    if (silent && refusal) text(lost, refusal);
    else if (silent) text(lost, `The server has not answered since ${lostAt}. What you see may be over.`);
    else if (problem) text(lost, `No newer data: ${problem}`);
  }

  // Puts new content in the place of old without moving it: the same elements stay, so that what is selected, focused
  // or scrolled stays so. Elements with data-key are the same if their keys are.
  function steady(old, fresh) {
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    children(old, fresh);
  }

  function same(one, other) {
    return (
      one.nodeType === other.nodeType &&
      one.nodeName === other.nodeName &&
      (one.nodeType !== Node.ELEMENT_NODE || (one.id === other.id && one.dataset.key === other.dataset.key))
    );
  }

  function children(old, fresh) {
    const keyed = new Map();
    for (const child of old.children) if (child.dataset.key !== undefined) keyed.set(child.dataset.key, child);
    let at = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      const kept = keyed.get(child.dataset?.key);
      if (kept && kept !== at) {
        old.insertBefore(kept, at);
        at = kept;
      }
      if (at && same(at, child)) {
        if (at.nodeType === Node.ELEMENT_NODE) steady(at, child);
        else if (at.nodeValue !== child.nodeValue) at.nodeValue = child.nodeValue;
        at = at.nextSibling;
      } else {
        old.insertBefore(document.importNode(child, true), at);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  }

  // Rows that come, go or change places wait while their part is being read; numbers in them do not.
  const waiting = new Map();

  function rows(within) {
    return [...within.querySelectorAll("[data-key]")].map((row) => row.dataset.key).join("\n");
  }

  function isRead(part) {
    const selection = getSelection();
    return (
      part.matches(":hover") ||
      part.contains(document.activeElement) ||
      (!selection.isCollapsed && part.contains(selection.anchorNode)) ||
      [...part.querySelectorAll(".scroll")].some((list) => list.scrollTop > 0)
    );
  }

  // A part that is read stays where it is when one above it grows or shrinks: the page is scrolled by as much.
  function replace(part, fragment) {
    const read = [...document.querySelectorAll("[sse-swap]")].find((each) => each !== part && isRead(each));
    const top = read?.getBoundingClientRect().top;
    children(part, fragment);
    if (read) scrollBy(0, read.getBoundingClientRect().top - top);
  }

  function put(part, fragment) {
    const waits = rows(part) !== rows(fragment) && isRead(part);
    if (waits) waiting.set(part, fragment);
    else {
      waiting.delete(part);
      replace(part, fragment);
    }
    const section = part.closest("section");
    const note = section?.querySelector(".waiting");
    if (note) note.hidden = ![...waiting.keys()].some((each) => section.contains(each));
  }

  htmx.createEventSource = (url) => new Stream(url);
  htmx.defineExtension("steady", {
    isInlineSwap: () => false,
    handleSwap: (style, target, fragment) => {
      if (style !== "steady") return false;
      put(target, fragment);
      return [];
    },
  });

  setInterval(() => {
    show();
    for (const [part, fragment] of [...waiting]) if (!isRead(part)) put(part, fragment);
  }, 250);
  show();
})();
