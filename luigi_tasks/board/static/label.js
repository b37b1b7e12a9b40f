// The page Label: pictures are chosen and labelled by keys, clicks and touch. What is decided is shown at once, kept
// in this tab until the board has it, and sent in the order in which it was decided; where somebody else decided
// meanwhile, that is shown and stays. Without this script the same form labels what is ticked.
"use strict";

(() => {
  const UNDO_STEPS = 200, NUMBERED = 9, FOUND_AT_MOST = 9, SEND_AT_MOST = 500, RETRY_MS = 2000, LOOK_MS = 300;

  const desk = document.getElementById("desk");
  if (!desk) {  // nothing to label yet: shown as soon as there is
    document.body.addEventListener("labels", () => location.reload());
    return;
  }
  const at = (id) => document.getElementById(id);
  const cards = [...desk.querySelectorAll(".frame")];
  const byId = new Map(cards.map((card) => [card.dataset.id, card]));
  const box = (card) => card.querySelector("input[type=checkbox]");
  const may = Boolean(desk.dataset.may), discard = desk.dataset.discard;
  const isDoubtful = desk.dataset.tab === "doubtful";
  // Of this board and this person: after another one signed in, nothing is sent in their name.
  const KEPT = `unsent ${desk.action} ${desk.dataset.person}`, UNDONE = `undo ${desk.action} ${desk.dataset.person}`;
  let classes = JSON.parse(at("classes").textContent);
  let place = Number(desk.dataset.place), decided = Number(desk.dataset.decided);
  let current = null, anchor = null;
  const canHover = matchMedia("(hover: hover)").matches;

  const words = (label) => label === "" ? "undecided" : label === discard ? "thrown away" : label;
  const shown = (text) => [...text].map((one) => /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u.test(one) ? " " : one).join("").slice(0, 60);
  const say = (text) => { at("said").textContent = text; };

  // Which pictures

  const picked = () => cards.filter((card) => box(card).checked);
  const group = (card) => cards.filter((one) => one.dataset.group === card.dataset.group);
  const targets = () => picked().length ? picked() : current ? [current] : [];

  function countPicked() {
    const count = picked().length;
    at("picked").textContent = count ? `${count} chosen` : canHover ? "none chosen: the one with the focus is labelled" : "none chosen";
    for (const card of cards) card.classList.toggle("picked", box(card).checked);
    at("pick-all").textContent = count === cards.length && count ? "Choose none" : "Choose all";
  }

  function pick(some, on = true) {
    for (const card of some) box(card).checked = on;
    countPicked();
  }

  function focus(card) {
    if (!card) return;
    if (current) box(current).tabIndex = -1;
    current = card;
    box(card).tabIndex = 0;
    box(card).focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest" });
  }

  function between(one, other) {
    const [from, to] = [cards.indexOf(one), cards.indexOf(other)].sort((a, b) => a - b);
    return cards.slice(from, to + 1);
  }

  function above(card, by) {
    const columns = cards.filter((one) => one.offsetTop === cards[0].offsetTop).length || 1;
    const to = cards.indexOf(card) + by * columns;
    return cards[Math.min(Math.max(to, by < 0 ? cards.indexOf(card) % columns : 0), cards.length - 1)];
  }

  // What was decided

  function show(card, label, by) {
    card.dataset.chosen = label;
    card.dataset.by = by;
    card.querySelector(`input[name^="was:"]`).value = label;
    const part = card.querySelector("[data-part=chosen]");
    part.textContent = label === "" ? "" : shown(words(label)) + (by ? `, by ${shown(by)}` : "");
    if (label === "") {
      const unseen = document.createElement("span");
      unseen.className = "unseen";
      unseen.textContent = "undecided";
      part.append(unseen);
    }
  }

  function count() {
    for (const one of document.querySelectorAll("[data-count=decided]")) one.textContent = decided.toLocaleString("en");
    for (const one of document.querySelectorAll("[data-count=of]")) one.textContent = Number(desk.dataset.of).toLocaleString("en");
    at("progress").max = Math.max(desk.dataset.of, 1);
    at("progress").value = decided;
  }

  function change(card, label, by = "") {
    decided += (label !== "") - (card.dataset.chosen !== "");
    show(card, label, by);
  }

  // Sending: one request at a time, the rest waits; kept over a reload and a sign-in.

  const stored = (key) => { try { return JSON.parse(sessionStorage.getItem(key)) || []; } catch { return []; } };
  const store = (key, value) => { try { sessionStorage.setItem(key, JSON.stringify(value)); } catch { /* full or off */ } };
  let unsent = stored(KEPT), undo = stored(UNDONE), sending = false, timer = 0;

  function decide(some, labelOf, newClass = false) {
    if (!may) return say("Labelling needs the role labeller.");
    const changes = some.map((card) => ({ id: card.dataset.id, label: labelOf(card), was: card.dataset.chosen }))
      .filter((one) => one.label !== undefined && one.label !== one.was)
      .filter((one) => !byId.get(one.id).dataset.fault || one.label === "" || one.label === discard);
    if (!changes.length) return say("Nothing changed.");
    for (const one of changes) change(byId.get(one.id), one.label);
    remember(changes);
    enqueue(changes, newClass);
    const labels = new Set(changes.map((one) => words(one.label)));
    say(`${labels.size === 1 ? [...labels][0] : "each as predicted"}: ${changes.length} ${changes.length === 1 ? "picture" : "pictures"}. ${decided} of ${desk.dataset.of} decided.`);
    const last = cards.indexOf(byId.get(changes[changes.length - 1].id));
    pick(cards, false);
    count();
    const onward = [...cards.slice(last + 1), ...cards.slice(0, last + 1)].find((card) => card.dataset.chosen === "");
    if (changes[0].label === "") focus(byId.get(changes[0].id));
    else if (onward) focus(onward);
    else finishPage();
  }

  function finishPage() {
    const next = document.querySelector(".pager a[rel=next]");
    at("left").hidden = Boolean(next) || decided >= Number(desk.dataset.of);
    const left = at("left").hidden ? null : at("left").querySelector("a");
    say(`All on this page is decided. ${decided} of ${desk.dataset.of} decided.${next ? " Enter shows the next page." : ""}`);
    (next || left || at("take")).focus();
  }

  function remember(changes) {
    undo.push(changes);
    undo = undo.slice(-UNDO_STEPS);
    store(UNDONE, undo);
    at("undo").disabled = !undo.length;
  }

  function takeBack() {
    const changes = (undo.pop() || []).map((one) => ({ id: one.id, label: one.was, was: one.label }));
    store(UNDONE, undo);
    at("undo").disabled = !undo.length;
    if (!changes.length) return say("Nothing to undo.");
    for (const one of changes) if (byId.has(one.id)) change(byId.get(one.id), one.label);
    enqueue(changes, true);
    count();
    say(`Undone: ${changes.length} ${changes.length === 1 ? "picture" : "pictures"}.`);
    focus(byId.get(changes[0].id));
  }

  const decisions = () => unsent.length === 1 ? "1 decision is" : `${unsent.length} decisions are`;

  function enqueue(changes, newClass) {
    unsent.push(...changes.map((one) => ({ ...one, newClass })));
    store(KEPT, unsent);
    send();
  }

  async function send() {
    clearTimeout(timer);
    if (sending || !unsent.length) return;
    sending = true;
    const batch = unsent.slice(0, SEND_AT_MOST);
    const newClass = batch.some((one) => one.newClass);  // confirmed here, or undone; asked once more when it is taken
    let again = 0;
    try {
      const answer = await fetch(desk.action, {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "application/json", "X-Board-Csrf": document.body.dataset.csrf },
        body: JSON.stringify({ decisions: batch.map(({ id, label, was }) => ({ id, label, was })), new_class: newClass }),
      });
      if (answer.ok) {
        const found = await answer.json();
        unsent = unsent.slice(batch.length);
        place = found.place;
        if (!unsent.length) tell("");
        found.outcomes.forEach(settle);
      } else if (answer.status === 400 || answer.status === 413) {
        const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
        unsent = unsent.slice(batch.length);
        for (const one of batch) if (byId.has(one.id)) change(byId.get(one.id), one.was);
        tell(`Not kept: ${error}`);
      } else if (answer.status === 401 || answer.status === 403 || answer.status === 421) {
        const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
        tell(`${decisions()} not saved: ${error}.`, true);
        again = 15 * RETRY_MS;
      } else {
        const { error } = await answer.json().catch(() => ({ error: `the board answers ${answer.status}` }));
        tell(`${decisions()} not saved yet: ${error}. Trying again…`);
        again = RETRY_MS;
      }
    } catch {
      tell(`${decisions()} not saved yet: the board does not answer. Trying again…`);
      again = RETRY_MS;
    }
    store(KEPT, unsent);
    sending = false;
    if (again) timer = setTimeout(send, again);
    else send();
  }

  function settle(outcome) {
    const card = byId.get(outcome.id);
    if (!card || unsent.some((one) => one.id === outcome.id)) return;
    if (!outcome.fault) return show(card, outcome.label, outcome.by);
    decided += (outcome.label !== "") - (card.dataset.chosen !== "");
    show(card, outcome.label, outcome.by);
    count();
    if (outcome.is_new) return;
    card.classList.add("refused");
    say(`${outcome.id}: ${outcome.fault}`);
    tell(`${shown(outcome.id)}: ${shown(outcome.fault)}`);
  }

  function tell(text, signIn = false) {
    at("unsaved")?.remove();
    if (!text) return;
    const notice = board.noticeOf("warn", text, signIn ? board.signIn("Sign in") : null);
    notice.id = "unsaved";
    if (signIn) notice.firstChild.append("; they are kept in this tab.");
    at("desk-notices").append(notice);
  }

  // What others did, and new frames

  async function look() {
    try {
      const answer = await fetch(`${desk.dataset.state}?since=${place}&tab=${desk.dataset.tab}`, { headers: { Accept: "application/json" } });
      if (!answer.ok) return;
      const found = await answer.json();
      place = found.place;
      found.labels.forEach(addClass);
      for (const [id, label, by] of found.decisions || []) {
        const card = byId.get(id);
        if (card && !unsent.some((one) => one.id === id)) show(card, label, by);
      }
      if (!unsent.length) decided = found.decided;
      desk.dataset.of = found.of;
      for (const [tab, left] of Object.entries(found.undecided)) {
        const part = document.querySelector(`[data-count="${tab}"]`);
        if (part) part.textContent = left.toLocaleString("en");
      }
      count();
      const isNew = found.listing !== desk.dataset.listing || found.decisions === null;
      at("fresh")?.remove();
      if (isNew && !found.lister.is_running) offerReload();
    } catch { /* the stream says that the board is away */ }
  }

  function offerReload() {
    const notice = board.noticeOf("info", "The inbox has changed: frames came or went.", { href: location.href, words: "Show them" });
    notice.id = "fresh";
    at("desk-notices").append(notice);
  }

  // Search of a class, and new classes

  // A class that was started here or elsewhere gets a key and a button; those that are there keep theirs.
  function addClass(label) {
    if (classes.includes(label)) return;
    classes.push(label);
    const button = document.createElement("button");
    button.name = "label";
    button.value = button.dataset.label = label;
    button.disabled = !may;
    if (classes.length <= NUMBERED) {
      const key = document.createElement("kbd");
      key.setAttribute("aria-hidden", "true");
      key.textContent = classes.length;
      button.append(key);
    }
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = shown(label);
    button.append(name);
    at("other").before(button);
  }

  const search = at("search"), text = at("search-text"), found = at("search-found");
  let wanted = [], active = 0, confirmed = "";

  function openSearch(start = "") {
    wanted = targets();
    if (!wanted.length || !may) return say(may ? "No picture is chosen." : "Labelling needs the role labeller.");
    at("search-count").textContent = wanted.length === 1 ? "one picture" : `${wanted.length} pictures`;
    text.value = start;
    confirmed = "";
    search.showModal();
    text.focus();
    list();
  }

  function matches() {
    const typed = text.value.trim().normalize("NFC"), small = typed.toLocaleLowerCase();
    const fits = classes.filter((one) => one.toLocaleLowerCase().includes(small));
    const rank = (label) => label === typed ? 0 : label.toLocaleLowerCase() === small ? 1 : label.toLocaleLowerCase().startsWith(small) ? 2 : 3;
    fits.sort((a, b) => rank(a) - rank(b));
    return { typed, fits: fits.slice(0, FOUND_AT_MOST), isNew: typed !== "" && !classes.includes(typed) };
  }

  function list() {
    const { typed, fits, isNew } = matches();
    const options = [...fits.map((label) => ({ label, words: shown(label) })), ...(isNew ? [{ label: typed, words: `new class “${shown(typed)}”`, isNew: true }] : [])];
    active = Math.min(active, Math.max(options.length - 1, 0));
    found.replaceChildren(...options.map((one, number) => {
      const item = document.createElement("li");
      item.id = `search-${number}`;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", String(number === active));
      item.textContent = one.words;
      item.dataset.label = one.label;
      if (one.isNew) item.dataset.new = "yes";
      item.addEventListener("click", () => { active = number; take(); });
      return item;
    }));
    if (options.length) text.setAttribute("aria-activedescendant", `search-${active}`);
    else text.removeAttribute("aria-activedescendant");
    at("search-fault").textContent = "";
    at("search-new").hidden = true;
    at("search-take").textContent = "Label";
    confirmed = "";
  }

  function take() {
    const option = found.children[active];
    if (!option) return;
    const label = option.dataset.label;
    if (option.dataset.new && confirmed !== label) {
      const fault = /[/\\]/.test(label) ? "A class is a folder: no / or \\ in its name." : label.startsWith(".") ? "A class has no dot in front." : /[\p{Cc}\p{Zl}\p{Zp}\p{Cs}]/u.test(label) ? "A class is one line of visible text."
        : classes.some((one) => one.toLocaleLowerCase() === label.toLocaleLowerCase()) ? "It differs only in case from a class that is there." : "";
      at("search-fault").textContent = fault;
      if (fault) return;
      confirmed = label;
      at("search-new").hidden = false;
      at("search-new").textContent = `“${shown(label)}” is no class of the dataset yet. Once more, and it starts one, with ${wanted.length === 1 ? "this picture" : `these ${wanted.length} pictures`}.`;
      at("search-take").textContent = "Start the class";
      say(at("search-new").textContent);
      return;
    }
    search.close();
    addClass(label);
    decide(wanted, () => label, Boolean(option.dataset.new));
  }

  text.addEventListener("input", () => { active = 0; list(); });
  text.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      active = (active + (event.key === "ArrowDown" ? 1 : -1) + found.children.length) % (found.children.length || 1);
      const was = text.value;
      list();
      text.value = was;
    } else if (event.key === "Enter") {
      take();
    } else {
      return;
    }
    event.preventDefault();
  });
  at("search-take").addEventListener("click", take);
  search.addEventListener("close", () => { if (current && document.activeElement === document.body) focus(current); });

  // Keys

  const accept = (card) => card.dataset.predicted || undefined;
  const undecidedOf = (card) => group(card).filter((one) => one.dataset.chosen === "" || one === card);

  function acceptAll(some) {
    const fresh = [...new Set(some.map(accept).filter((one) => one !== undefined && !classes.includes(one)))];
    if (!fresh.length) return decide(some, accept);
    pick(cards, false);
    pick(some.filter((card) => fresh[0] === accept(card)));
    openSearch(fresh[0]);
  }

  function press(event) {
    const card = event.target.closest?.(".frame");
    if (!card || event.target !== box(card) || event.altKey) return;
    if (event.repeat && !/^Arrow|^Page|^ $/.test(event.key)) return event.preventDefault();  // a key that is held labels once
    // Where digits need Shift (French), a digit is one; else Shift with the key of a digit is for the whole group. A
    // sign that is a key itself counts first: / stands above 7 in Germany, + above 1 in Switzerland.
    const isDigit = /^[0-9]$/.test(event.key), byPlace = /^Digit([0-9])$/.exec(event.code)?.[1];
    const isSign = "-=".includes(event.key) || (event.shiftKey && "/+?".includes(event.key));
    const digit = isDigit ? event.key : isSign ? undefined : byPlace;
    const isWhole = event.shiftKey && !isDigit;
    if (event.ctrlKey || event.metaKey) {
      const isLatin = /^[a-z]$/i.test(event.key);  // else the place counts, as in all programs
      const key = isLatin ? event.key.toLowerCase() : event.code.replace("Key", "").toLowerCase();
      if (key === "a") pick(cards); else if (key === "z") takeBack(); else return;
    } else if (digit > "0") {
      const label = classes[digit - 1];
      if (label === undefined) say(`There is no class with key ${digit}.`);
      else decide(isWhole ? undecidedOf(card) : targets(), () => label);
    } else if (digit === "0" && !isWhole) decide(targets(), () => "");
    else if (event.key === "=" && isDoubtful) decide(targets(), (one) => one.dataset.own);
    else if (event.key === "Enter") acceptAll(event.shiftKey ? undecidedOf(card) : targets());
    else if (event.key === "-" || event.key === "Delete" || event.key === "Backspace") decide(targets(), () => discard);
    else if (event.key === " ") { if (!event.shiftKey) return; pick(group(card)); }
    else if (event.key === "Escape") pick(cards, false);
    else if (event.key === "?") at("help").showModal();
    else if (event.key === "+") lookClosely(card);
    else if (event.key.toLowerCase() === "u" && !event.shiftKey) takeBack();
    else if (event.key === "/") openSearch();
    else if (event.key === "Home") focus(cards[0]);
    else if (event.key === "End") focus(cards[cards.length - 1]);
    else if (event.key === "PageDown") { const next = document.querySelector(".pager a[rel=next]"); if (!next) return; next.click(); }
    else if (event.key === "PageUp") { const back = document.querySelector(".pager a[rel=prev]"); if (!back) return; back.click(); }
    else if (event.key.startsWith("Arrow")) {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const to = step ? cards[cards.indexOf(card) + step] : above(card, event.key === "ArrowUp" ? -1 : 1);
      if (to && event.shiftKey) { anchor ??= card; pick(between(anchor, to)); } else if (!event.shiftKey) anchor = null;
      focus(to);
    } else if (event.key.length === 1 && /\p{L}/u.test(event.key)) openSearch(event.key);
    else return;
    event.preventDefault();
  }

  function lookClosely(card) {
    const image = card.querySelector("img");
    if (!image) return;
    at("large").src = `${image.src}?large=1`;
    at("large-words").textContent = `${card.querySelector(".says").textContent.trim()} · ${card.querySelector(".facts-line").textContent.trim()}`;
    at("close-look").showModal();
  }

  // Pointers

  desk.addEventListener("click", (event) => {
    const card = event.target.closest(".frame");
    if (!card || event.target.closest("button")) return;
    if (event.shiftKey && current && current !== card) {
      event.preventDefault();
      pick(between(current, card));
      setTimeout(() => { box(card).checked = true; countPicked(); });
    }
  });
  desk.addEventListener("change", countPicked);
  desk.addEventListener("dblclick", (event) => { const card = event.target.closest(".frame"); if (card && event.target.matches("img")) lookClosely(card); });
  desk.addEventListener("focusin", (event) => {
    const card = event.target.closest(".frame");
    if (!card || event.target !== box(card) || card === current) return;
    if (current) box(current).tabIndex = -1;
    current = card;
    box(card).tabIndex = 0;
  });
  desk.addEventListener("keydown", press);
  desk.addEventListener("submit", (event) => {
    event.preventDefault();
    const button = event.submitter;
    if (!button) return;
    if (!targets().length) return say("No picture is chosen.");
    if (button.dataset.act === "accept") acceptAll(targets());
    else if (button.dataset.act === "keep") decide(targets(), (one) => one.dataset.own);
    else decide(targets(), () => button.dataset.label);
  });
  for (const one of desk.querySelectorAll(".pick-group")) {
    one.hidden = false;
    one.addEventListener("click", () => {
      const some = cards.filter((card) => card.dataset.group === one.dataset.group);
      pick(some, !some.every((card) => box(card).checked));
      focus(some[0]);
    });
  }
  for (const image of desk.querySelectorAll("img")) {
    const fail = async () => {
      const words = document.createElement("span");
      words.className = "no-picture";
      words.textContent = "cannot be shown";
      image.replaceWith(words);
      const answer = await fetch(image.src, { headers: { Accept: "application/json" } }).catch(() => null);
      const { error } = (await answer?.json().catch(() => null)) || {};
      if (error) words.textContent = `cannot be shown: ${shown(error)}`;
    };
    if (image.complete && image.naturalWidth === 0 && image.src && image.loading !== "lazy") fail();
    image.addEventListener("error", fail, { once: true });
  }
  for (const id of ["other", "undo", "pick-all", "help-open"]) at(id).hidden = false;
  at("other").addEventListener("click", () => openSearch());
  at("undo").addEventListener("click", takeBack);
  at("undo").disabled = !undo.length;
  at("pick-all").addEventListener("click", () => { pick(cards, picked().length !== cards.length); focus(current); });
  // Keys are of the pictures alone; a click beside all controls must not silence them.
  document.querySelector("main").addEventListener("click", () => {
    const isBeside = document.activeElement === document.body || document.activeElement.tagName === "MAIN";
    if (isBeside && current && canHover && getSelection().isCollapsed) box(current).focus({ preventScroll: true });
  });
  at("help-open").addEventListener("click", () => at("help").showModal());
  // What is unsent is kept in this tab: only closing it loses anything, following a link of it does not.
  let isLeaving = false;
  document.addEventListener("click", (event) => { isLeaving = Boolean(event.target.closest("a")); }, true);
  addEventListener("beforeunload", (event) => { if (unsent.length && may && !isLeaving) event.preventDefault(); });
  let looking = 0;
  const lookSoon = () => { looking ||= setTimeout(() => { looking = 0; look(); }, LOOK_MS); };
  document.body.addEventListener("labels", lookSoon);
  document.body.addEventListener("inbox", lookSoon);

  for (const card of cards) box(card).tabIndex = -1;
  for (const one of unsent) {
    if (byId.has(one.id)) change(byId.get(one.id), one.label);
    else decided += (one.label !== "") - (one.was !== "");  // of the page before
  }
  countPicked();
  count();
  const first = cards.find((card) => card.dataset.chosen === "") || cards[0];
  if (first) {
    current = first;
    box(first).tabIndex = 0;
    if (may && canHover) focus(first);
  }
  send();
})();
