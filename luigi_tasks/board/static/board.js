// All pages: live parts, times in the reader's zone, notices. Without this script pages still show and act.
//
// A live part is fetched again when its topic changes:
//   <section id="x" hx-get="..." hx-select="#x" hx-target="this" hx-swap="outerHTML"
//            hx-trigger="snapshot from:body, rollouts from:body">
// While a reader types, has text selected or a box open in the part, it waits until they are done; the focus, open
// <details> and what is scrolled stay. `document.body` gets the events `snapshot`, `rollouts`, ... too.
"use strict";

(() => {
  const TOPICS = JSON.parse(document.body.dataset.topics);
  const FIRST_WAIT_MS = 1000, LONGEST_WAIT_MS = 30000;
  // The board says something every 15 s; a connection that is silent for longer is dead (sleep, Wi-Fi).
  const SILENCE_MS = 45000;

  // As the macro `notice`: words, and perhaps a link after them.
  function noticeOf(state, words, link) {
    const notice = document.createElement("div"), text = document.createElement("p");
    notice.className = `notice state-${state}`;
    text.textContent = words;
    if (link) {
      const to = document.createElement("a");
      to.href = link.href;
      to.textContent = link.words;
      text.append(" ", to);
    }
    notice.append(text);
    return notice;
  }

  // Notices: one of each kind; read out politely, gone when it is no longer so.
  function tell(kind, state, words, link) {
    const box = document.getElementById("notices");
    const old = box.querySelector(`[data-kind="${kind}"]`);
    if (old && old.dataset.words === words) return;
    old?.remove();
    if (!words) return;
    const notice = noticeOf(state, words, link);
    notice.dataset.kind = kind;
    notice.dataset.words = words;
    if (kind !== "connection") {
      const close = document.createElement("button");
      close.type = "button";
      close.className = "plain";
      close.textContent = "Close";
      close.addEventListener("click", () => notice.remove());
      notice.append(close);
    }
    box.append(notice);
  }

  const signIn = (words = "Sign in again") => ({
    href: `${document.body.dataset.signIn}?next=${encodeURIComponent(location.pathname + location.search)}`,
    words,
  });
  const refused = (status) => status === 401 || status === 403;

  // The stream of changes: one for a tab, closed while nobody sees it (browsers open six connections to a host).
  const stream = {
    source: null, timer: 0, silence: 0, waitMs: FIRST_WAIT_MS, seen: {},

    open() {
      if (this.source || document.hidden) return;
      clearTimeout(this.timer);
      const source = this.source = new EventSource(document.body.dataset.streams);
      source.addEventListener("open", () => {
        this.waitMs = FIRST_WAIT_MS;
        tell("connection", "good", "");
        this.heard();
      });
      source.addEventListener("alive", () => this.heard());
      source.addEventListener("error", () => this.lost(source.readyState === EventSource.CLOSED));
      for (const topic of TOPICS) {
        source.addEventListener(topic, (event) => {
          this.heard();
          if (this.seen[topic] === event.data) return;
          this.seen[topic] = event.data;
          changed(topic);
        });
      }
    },

    heard() {
      clearTimeout(this.silence);
      this.silence = setTimeout(() => this.lost(false), SILENCE_MS);
    },

    close() {
      clearTimeout(this.timer);
      clearTimeout(this.silence);
      this.source?.close();
      this.source = null;
    },

    async lost(wasAnswered) {
      this.close();
      const waitMs = this.waitMs * (0.75 + Math.random() / 2);
      this.waitMs = Math.min(2 * this.waitMs, LONGEST_WAIT_MS);
      this.timer = setTimeout(() => this.open(), waitMs);
      const status = wasAnswered ? await this.status() : 0;
      if (refused(status)) {
        tell("connection", "warn", "This page is no longer live: you are signed out.", signIn());
      } else if (status === 503) {
        tell("connection", "warn", "This page is not live: too many pages of the board are open.");
      } else if (!this.source) {
        tell("connection", "warn", "The board does not answer; this page may be out of date. Connecting again…");
      }
    },

    // EventSource does not tell why it was refused.
    async status() {
      const end = new AbortController();
      try {
        return (await fetch(document.body.dataset.streams, { signal: end.signal })).status;
      } catch {
        return 0;
      } finally {
        end.abort();
      }
    },
  };

  // A page that could not be read (503) is shown as soon as it can.
  async function reloadIfBack() {
    const answer = await fetch(location.href).catch(() => null);
    if (answer && answer.status !== 503) location.reload();
  }

  // Live parts.
  const waiting = new Set();
  // Topics that changed while a part was being fetched, by its id: the answer may be older than the change, and
  // htmx drops what it queued for a part that is replaced.
  const missed = new Map();
  const RETRY_MS = 5000;

  function changed(topic) {
    document.body.dispatchEvent(new CustomEvent(topic));
  }

  function noteMissed(topic) {
    for (const part of document.querySelectorAll(`.htmx-request[id][hx-trigger*="${topic} from:body"]`)) {
      missed.set(part.id, topic);
    }
  }

  function fetchMissed() {
    const topics = new Set();
    for (const [id, topic] of missed) {
      if (document.getElementById(id)?.classList.contains("htmx-request")) continue;
      missed.delete(id);
      topics.add(topic);
    }
    topics.forEach(changed);
  }

  function isBusy(part) {
    const at = document.activeElement;
    if (at && part.contains(at) && at.matches("input, select, textarea, [contenteditable]")) return true;
    if (part.querySelector("dialog[open]")) return true;
    const selected = getSelection();
    return selected && !selected.isCollapsed && selected.rangeCount > 0 &&
      selected.getRangeAt(0).intersectsNode(part);
  }

  const topicOf = (request) => TOPICS.find((one) => one === request?.triggeringEvent?.type);

  function releaseWaiting() {
    const topics = new Set();
    for (const one of waiting) {
      if (one.part.isConnected && isBusy(one.part)) continue;
      waiting.delete(one);
      if (one.part.isConnected) topics.add(one.topic);
    }
    topics.forEach(changed);
  }

  function delayed(part, topic) {
    waiting.add({ part, topic });
  }

  // What a swap would lose.
  function placeIn(part) {
    const at = document.activeElement;
    const kept = { focus: null, open: [], scrolled: [] };
    if (at && at !== document.body && part.contains(at) && !at.id) {
      const like = likeness(at);
      kept.focus = { like, index: [...part.querySelectorAll(at.tagName)].filter((one) => likeness(one) === like).indexOf(at) };
    }
    part.querySelectorAll("details").forEach((one, index) => one.open && kept.open.push(index));
    part.querySelectorAll(".scroll").forEach((one) => kept.scrolled.push([one.scrollLeft, one.scrollTop]));
    return kept;
  }

  const likeness = (one) => [one.tagName, one.getAttribute("href"), one.getAttribute("name"), one.getAttribute("value"),
    one.getAttribute("aria-label")].join("\n");

  function restore(part, kept) {
    const details = part.querySelectorAll("details"), scrolls = part.querySelectorAll(".scroll");
    kept.open.forEach((index) => details[index] && (details[index].open = true));
    kept.scrolled.forEach(([left, top], index) => scrolls[index]?.scrollTo(left, top));
    if (kept.focus) {
      const tag = kept.focus.like.split("\n")[0];
      const same = [...part.querySelectorAll(tag)].filter((one) => likeness(one) === kept.focus.like);
      (same[kept.focus.index] || same[0])?.focus({ preventScroll: true });
    }
  }

  function watchSwaps(body) {
    const places = new Map();
    body.addEventListener("htmx:beforeRequest", (event) => {
      const topic = topicOf(event.detail.requestConfig), part = event.detail.target;
      if (topic && isBusy(part)) {
        event.preventDefault();
        delayed(part, topic);
      }
    });
    body.addEventListener("htmx:beforeSwap", (event) => {
      const { target, xhr, requestConfig } = event.detail, topic = topicOf(requestConfig);
      if (!event.detail.shouldSwap) return;
      // The answer is another page, such as the sign-in: what is there stays.
      if (topic && target.id && !xhr.responseText.includes(`id="${target.id}"`)) {
        event.detail.shouldSwap = false;
        tell("request", "warn", "This page could not be brought up to date.", signIn());
      } else if (topic && isBusy(target)) {
        event.detail.shouldSwap = false;
        delayed(target, topic);
      } else if (target.id) {
        places.set(target.id, placeIn(target));
      }
    });
    body.addEventListener("htmx:afterSwap", () => {
      for (const [id, kept] of places) {
        const part = document.getElementById(id);
        if (part) restore(part, kept);
      }
      places.clear();
      tell("request", "good", "");
    });
    for (const kind of ["focusout", "selectionchange", "close"]) {
      document.addEventListener(kind, () => waiting.size && setTimeout(releaseWaiting, 50), true);
    }
    TOPICS.forEach((topic) => body.addEventListener(topic, () => noteMissed(topic), true));
    // After a swap the new part has the classes of the old one until it is settled.
    for (const kind of ["htmx:afterRequest", "htmx:afterSettle"]) {
      body.addEventListener(kind, () => missed.size && setTimeout(fetchMissed));
    }
    body.addEventListener("htmx:responseError", (event) => {
      const { status, responseText } = event.detail.xhr, topic = topicOf(event.detail.requestConfig);
      if (topic && status >= 500) setTimeout(() => changed(topic), RETRY_MS);
      if (refused(status)) {
        tell("request", "bad", `Refused: ${reasonIn(responseText) || "you are signed out or have not the right"}.`, signIn());
      } else {
        tell("request", "bad", `The board answered ${status}: ${reasonIn(responseText) || "no reason given"}`);
      }
    });
    for (const kind of ["htmx:sendError", "htmx:timeout"]) {
      body.addEventListener(kind, (event) => {
        const topic = topicOf(event.detail.requestConfig);
        if (topic) stream.seen[topic] = "";
        else tell("request", "bad", "The board does not answer; nothing was sent. Try again.");
      });
    }
  }

  // The heading of an error's page.
  function reasonIn(text) {
    const page = new DOMParser().parseFromString(text, "text/html");
    return page.querySelector("main h1")?.textContent.trim() || "";
  }

  // What the scripts of pages use too.
  window.board = { noticeOf, signIn, reasonIn };

  // Times.
  const moment = new Intl.DateTimeFormat(undefined, {
    year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit",
  });
  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

  function sinceWords(at) {
    const seconds = Math.round((Date.now() - at) / 1000);
    const [unit, size] = UNITS.find(([, one]) => Math.abs(seconds) >= one) || UNITS[3];
    const count = Math.floor(Math.abs(seconds) / size);
    return seconds < 0 ? `in ${count} ${unit}` : `${count} ${unit} ago`;
  }

  function writeTimes(root) {
    for (const one of root.querySelectorAll("time[datetime]")) {
      const at = new Date(one.dateTime);
      if (isNaN(at)) continue;
      const words = one.classList.contains("ago") ? sinceWords(at) : moment.format(at);
      if (one.classList.contains("ago") && !one.dataset.title) {
        one.dataset.title = one.title;
        one.title = `${moment.format(at)} (${one.title})`;
      }
      if (one.textContent !== words) one.textContent = words;
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    const body = document.body;
    writeTimes(document);
    new MutationObserver(() => writeTimes(document)).observe(body, { childList: true, subtree: true });
    setInterval(() => document.hidden || writeTimes(document), 10000);
    if (document.querySelector("[data-passes]")) setInterval(() => document.hidden || reloadIfBack(), RETRY_MS);
    watchSwaps(body);
    stream.seen = JSON.parse(body.dataset.versions);
    stream.open();
    document.addEventListener("visibilitychange", () => (document.hidden ? stream.close() : stream.open()));
    addEventListener("pagehide", () => stream.close());
    addEventListener("online", () => stream.open());
  });
})();
