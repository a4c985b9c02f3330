/* What the browser does by itself. Python names a function of `biogpt` (biogpt/ui/scripts.py); Gradio calls it
 * with the values of components, and sets components to what it returns. */

"use strict";

{
  const TEXT = "#text textarea";
  const RUN = "#generate, button.run";
  const STOP = "#stop, button.stop";
  // What a button's key is; Gradio's buttons have no help of their own.
  const KEYS = { [RUN]: "Ctrl + Enter (Cmd + Enter)", [STOP]: "Esc" };
  const PAUSE = 200; // milliseconds without typing until the length is counted
  const SETTLE = 300; // milliseconds in which the last events of a run arrive, once one has
  const LATE = 3000; // milliseconds in which the end of a stopped run may be told again
  const LOST = 60000; // after so many it is not waited for

  const update = (changes) => ({ __type__: "update", ...changes });
  const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const busy = () => document.querySelector("#generate")?.disabled;

  /* The page */

  /* What the page holds when it loads anew in its tab: Gradio reloads it when the server was away. Kept as it is
   * left, and taken out as it comes back, since a tab that is duplicated must not take up the same session. With
   * another address it is another page, whose link counts. */

  const before = JSON.parse(sessionStorage.getItem("page"));
  sessionStorage.removeItem("page");
  const comesBack = before !== null && before.address === location.search;
  const kept = comesBack ? before : { read: {} };

  const remember = (...values) => {
    kept.values = values;
  };

  const session = () => [comesBack ? before.session : ""];

  function recall(tabs, count, own) {
    const { tab, values } = kept;
    kept.session = own;
    if (!comesBack || values?.length !== count) return Array(count + 1).fill(update());
    return [update({ selected: tabs[tab] }), ...values];
  }

  function leave() {
    const [tab] = withTab();
    try {
      sessionStorage.setItem("page", JSON.stringify({ ...kept, tab, address: location.search }));
    } catch {
      // more than the browser keeps: a text of some million characters
    }
  }

  // Ctrl+Enter (Cmd+Enter) and Esc press the buttons of the tab in view; a disabled button disables its key.
  function pressByKey(event) {
    if (takeByKey(event)) return event.preventDefault();
    const enter = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (!enter && event.key !== "Escape") return undefined;
    const buttons = [...document.querySelectorAll(enter ? RUN : STOP)].filter(
      (candidate) => candidate.offsetParent !== null,
    );
    // Of two forms in sight Esc stops the one that runs.
    const button = enter ? buttons[0] : buttons.find((candidate) => !candidate.disabled);
    if (!button && !enter) close();
    if (!button || button.disabled) return undefined;
    event.preventDefault();
    return button.click();
  }

  function nameKey(event) {
    for (const [buttons, key] of Object.entries(KEYS)) {
      const button = event.target.closest?.(buttons);
      if (button) button.title = key;
    }
  }

  // Gradio tells of keys, but not of what is pasted or cut.
  let counting;
  function countSoon() {
    clearTimeout(counting);
    counting = setTimeout(() => document.querySelector("#typed").click(), PAUSE);
  }

  function countTyped(event) {
    if (!event.target.matches(TEXT)) return;
    countSoon();
    draw();
  }

  const dismiss = (event) => event.target.closest?.(".notice button")?.parentElement.remove();

  // A slider's number that was cleared would become its least one, in silence: what it was comes back.
  const NUMBER = "input[aria-label^='number input']";

  function keepNumber(event) {
    if (event.target.matches?.(NUMBER)) event.target.dataset.last = event.target.value;
  }

  function restoreNumber({ target }) {
    if (!target.matches?.(NUMBER) || target.value !== "" || !target.dataset.last) return;
    target.value = target.dataset.last;
    target.dispatchEvent(new Event("input", { bubbles: true }));
  }

  function start() {
    addEventListener("pagehide", leave);
    document.addEventListener("pointerover", nameKey);
    document.addEventListener("input", countTyped);
    document.addEventListener("keydown", pressByKey);
    document.addEventListener("click", dismiss);
    document.addEventListener("focus", keepNumber, true);
    document.addEventListener("blur", restoreNumber, true); // before Gradio's own
    document.addEventListener("click", copyExample);
    document.addEventListener("pointerdown", (event) => (touched = event.pointerType === "touch"), true);
    document.addEventListener("mousedown", tap);
    document.addEventListener("click", chooseByClick);
    document.addEventListener("keyup", chooseByKey);
    document.addEventListener("pointermove", nameToken);
    document.addEventListener("change", switchColours);
    document.addEventListener("scroll", noteScroll, true);
    document.addEventListener("selectionchange", noteCursor);
  }

  /* Buttons of a form, the last of which stops what the others begin. They are switched here, since Stop also
   * has to work while a run waits in line. The end of a stopped run is told by its stream, as an end or as a failure, and
   * as both, the failure first, once the server has answered: in any order, each as late as the line is slow. Were one
   * of them heeded, a run that began meanwhile could not be stopped. So none begins before that answer, and no end
   * counts while the status line tells of a run. */

  const stopping = new Map(); // by the names of forms
  const stoppedAt = new Map(); // by the names of forms, in milliseconds

  // What a screen reader says: the state of a run, not each of its tokens.
  function say(words) {
    let line = document.querySelector("#said");
    if (!line) {
      line = document.body.appendChild(document.createElement("div"));
      line.id = "said";
      line.setAttribute("role", "status");
    }
    line.textContent = words;
  }

  const SAID = { write: "Writing", models: "Loading" };
  const part = (form, name) => document.querySelector(form === "write" ? `#${name}` : `#${form}-${name}`);
  const statusLine = (form) => part(form, "status")?.querySelector(".status");
  let from; // what had the focus when a run began

  // A button that is switched off would drop the focus.
  function keepFocus(...wanted) {
    const active = document.activeElement;
    if (active && active !== document.body && !active.disabled) return;
    wanted.find((element) => element?.isConnected && !element.disabled)?.focus();
  }

  function told(form) {
    const line = part(form, "status")?.querySelector(".status:not(.refusal) b");
    if (line) say(form === "write" && suggested ? `Suggested: ${suggested.words}. ${HOW}` : line.textContent);
    keepFocus(from, part(form, form === "write" ? "generate" : "run"));
  }

  function switched(form, count, running) {
    if (form === "write") {
      if (running) [opened, suggested] = [-1, null]; // its alternatives are cleared
      // What is typed into a text that is being written would be lost at the next token.
      document.querySelector(TEXT).readOnly = running;
      for (const button of document.querySelectorAll("#prompts button")) button.disabled = running;
    }
    return Array.from({ length: count }, (_, index) =>
      update({ interactive: running === (index === count - 1) }),
    );
  }

  // What a form's results are of: a file by its path, for its address in the browser changes.
  const asked = (given) => JSON.stringify(given, (_, value) => value?.path ?? value);
  let askedBefore;

  // What is cleared comes before the buttons. A form gives what it asks for.
  function begun(form, count, cleared, ...given) {
    askedBefore = kept.read[form];
    if (given.length > 1) kept.read[form] = asked(given);
    stopping.delete(form);
    statusLine(form)?.classList.add("before");
    from = document.activeElement;
    say(SAID[form] ?? "Reading");
    setTimeout(() => keepFocus(part(form, "stop")), PAUSE);
    return [...Array(cleared).fill(""), ...switched(form, count, true)];
  }

  // Whether the status line tells of a run that goes on, or, soon after one was stopped, of none yet.
  function goesOn(form) {
    const line = statusLine(form);
    if (line?.matches(".before")) return Date.now() - stoppedAt.get(form) < LATE;
    return line?.matches(".busy");
  }

  async function ended(form, count) {
    if (!stopping.has(form) && goesOn(form)) await wait(SETTLE); // its last line may not be drawn yet
    if (!stopping.has(form)) return goesOn(form) ? Array(count).fill(update()) : over(form, count);
    stopping.get(form).ended();
    return Array(count).fill(update());
  }

  // By a refusal of Gradio's or a fault, which no status line tells; or because it is stopped.
  function brokenOff(form, count) {
    if (!stopping.has(form)) return over(form, count);
    stopping.get(form).broken = true;
    return Array(count).fill(update());
  }

  function over(form, count) {
    if (document.querySelector(`#${form}-status .refusal`)) kept.read[form] = askedBefore;
    setTimeout(told, SETTLE, form);
    return switched(form, count, false);
  }

  const outdated = (form, ...given) =>
    kept.read[form] === undefined || kept.read[form] === asked(given)
      ? ""
      : '<p class="remark stale" role="status">The results below were found in another text, ' +
        "or with other settings.</p>";

  function stop(form) {
    if (stopping.has(form)) return;
    const run = { broken: false };
    const isOver = (done) => () => (run.broken ? done() : setTimeout(done, LATE)); // it may have ended by itself
    run.isOver = new Promise((done) => (run.ended = isOver(done)));
    stopping.set(form, run);
  }

  async function stopped(form, count) {
    const run = stopping.get(form);
    await Promise.race([run?.isOver, wait(LOST)]);
    await wait(SETTLE);
    if (run !== stopping.get(form)) return Array(count).fill(update());
    stopping.delete(form);
    stoppedAt.set(form, Date.now());
    return over(form, count);
  }

  /* Values of components */

  const given = (values) => values;
  const chosen = (table, name) => table[name];
  const visibleWith = (wanted, values) => update({ visible: values.includes(wanted) });

  function nameOf(table, ...values) {
    const fits = (row) => row.every((value, index) => value === values[index]);
    return Object.keys(table).find((name) => fits(table[name])) ?? null;
  }

  /* Links, copies and files */

  // Browsers offer the clipboard to https and this machine alone; what is selected can be copied everywhere.
  async function copied(text) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = text;
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      return done;
    }
  }

  async function copyExample(event) {
    const button = event.target.closest?.(".programs button");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    button.textContent = (await copied(code.textContent)) ? "Copied" : "Not copied: select it";
  }

  // Samples are side by side in the view; the text holds the prompt alone.
  async function copyText(done, failed, text) {
    const [upTo, rest] = atRest(text);
    const marks = [...document.querySelectorAll("#view article mark")];
    const samples = marks.map((mark) => upTo + mark.textContent + rest);
    if (await copied(samples.join("\n\n") || text)) return done;
    document.querySelector(TEXT).select();
    return failed;
  }

  // The tab in view is known to the browser alone; it takes the place of the first value.
  const withTab = (_, ...values) => [
    document.querySelector("[role=tab][aria-selected=true]").innerText.trim(),
    ...values,
  ];

  // What the server makes of the state becomes the address, and is copied; the notice says what became of it.
  async function copyLink(done, failed, query, notice) {
    if (!query) return notice;
    const address = `${location.origin}${location.pathname}?${query}`;
    history.replaceState(null, "", address);
    return (await copied(address)) ? done : failed;
  }

  const escaped = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt()};`);

  // The button says what it runs: the file in the slot, or the text.
  function nameRun(verb, fileVerb, file) {
    if (!file) return [update({ value: verb }), update()];
    const line = `<p class="status"><b>File ready</b> ${escaped(file.orig_name)}: press ${fileVerb}</p>`;
    return [update({ value: fileVerb }), line];
  }

  const withOwnAddress = (content, address) =>
    content.replaceAll(address, (location.origin + location.pathname).replace(/\/$/, ""));

  function saveFile(file) {
    const link = document.createElement("a");
    link.href = file.url;
    link.download = file.orig_name;
    link.click();
  }

  /* The editor. Behind the text lies a copy of it whose letters are clear and whose tokens are coloured: what is
   * typed, undone, selected and read aloud is the browser's own text. A model looks back only, so what is known of
   * a token stays true whatever is changed after it, and is gone for those after a change. */

  const level = (percent) => [50, 20, 5, 0].findIndex((least) => percent >= least);
  let view; // its element, value and trigger
  let opened = -1; // token of the text whose alternatives are open
  let follows = true; // the reader is at the end of the text, and stays there
  let drawn;

  const area = () => document.querySelector(TEXT);
  const written = () => view?.props.value.text;
  const isOutdated = () => written() !== undefined && written() !== area().value;
  const tokens = () => view?.props.value.samples[0]?.count ?? 0;
  const tokenOf = (index) => document.querySelector(`#ink .tok[data-i="${index}"]`);

  // Of several samples the text holds what they have in common.
  function knownPieces() {
    const { samples } = view.props.value;
    if (!samples.length) return [];
    const [{ pieces, known }] = samples;
    return samples.length === 1 ? pieces : pieces.slice(0, known);
  }

  // From the end of which token on the text is another one than that which was written, and where.
  function common(text) {
    const { given: prompt } = view.props.value;
    const pieces = knownPieces();
    if (!text.startsWith(prompt)) return { count: 0, ends: [], place: 0 };
    const ends = [];
    let place = prompt.length;
    for (const piece of pieces) {
      if (!text.startsWith(piece, place)) break;
      place += piece.length;
      ends.push(place);
    }
    // A word that goes on in another way is another word.
    if (text !== written() && /\S/.test(text[place] ?? "")) ends.pop();
    return { count: ends.length, ends, place: ends.at(-1) ?? prompt.length };
  }

  function inkOf(text) {
    let ink = document.querySelector("#ink");
    if (ink?.nextSibling !== text) {
      ink?.remove();
      ink = Object.assign(document.createElement("div"), { id: "ink" });
      ink.setAttribute("aria-hidden", "true");
      text.before(ink);
      new ResizeObserver(() => fit(ink, text)).observe(text);
    }
    return ink;
  }

  function fit(ink, text) {
    // Room to scroll to the end of what is suggested, which is not in the text.
    text.style.height = text.style.paddingBottom = "";
    const lacking = suggested ? ink.scrollHeight - text.scrollHeight : 0;
    if (lacking > 0) {
      text.style.height = `${text.offsetHeight}px`;
      text.style.paddingBottom = `calc(${getComputedStyle(text).paddingBottom} + ${lacking}px)`;
    }
    ink.style.inset = `${text.offsetTop + text.clientTop}px auto auto ${text.offsetLeft + text.clientLeft}px`;
    ink.style.width = `${text.clientWidth}px`; // without its scroll bar
    ink.style.height = `${text.clientHeight}px`;
    ink.scrollTop = text.scrollTop;
  }

  function draw() {
    const text = area();
    if (!text || !view) return;
    const value = view.props.value;
    const ink = inkOf(text);
    if (suggested && suggested.text !== text.value) suggested = null;
    if (drawn?.text !== text.value || drawn.value !== value || drawn.suggested !== suggested || !ink.firstChild) {
      drawn = { text: text.value, value, suggested };
      // What a model knows of the words after a suggestion is of the text without it.
      const { ends, count, place } = common(suggested ? text.value.slice(0, suggested.at) : text.value);
      const percents = value.samples[0]?.percents ?? [];
      let left = count ? value.given.length : place;
      const parts = [escaped(text.value.slice(0, left))];
      for (const [index, end] of ends.entries()) {
        const known = percents[index] >= 0 && end > left;
        const made = left >= value.begin ? " made" : "";
        const kind = known ? `tok p${level(percents[index])}${made}` : made;
        parts.push(`<span class="${kind}" data-i="${index}">${escaped(text.value.slice(left, end))}</span>`);
        left = end;
      }
      if (suggested) {
        const { at, words, gap } = suggested;
        parts.push(`${escaped(text.value.slice(left, at))}<span class="ghost">${escaped(words)}</span>${gap}`);
        left = at;
      }
      ink.innerHTML = `${parts.join("")}${escaped(text.value.slice(left))}\u200b`; // a last empty line counts
      document.querySelector("#text").classList.toggle("suggesting", suggested !== null);
      // A browser puts the cursor at the end of a text that it is given: new words are written where it was.
      const [{ length: at }, rest] = atRest(text.value);
      if (rest) countSoon(); // a run knows of what is before the cursor alone
      if (rest && !suggested && text.selectionEnd === text.value.length) text.setSelectionRange(at, at);
      if (follows && busy()) text.scrollTop = Math.max(rest ? text.scrollTop : 0, newest() - text.clientHeight);
    }
    fit(ink, text);
    tellWhere();
    for (const other of ink.querySelectorAll(".chosen")) other.classList.remove("chosen");
    tokenOf(opened)?.classList.add("chosen");
    const stale = !busy() && isOutdated();
    document.querySelector("#view")?.classList.toggle("outdated", stale);
    document.querySelector("#status")?.classList.toggle("outdated", stale);
    const end = tokens();
    const gone = opened === end ? stale : opened >= 0 && !tokenOf(opened);
    document.querySelector("#choices")?.classList.toggle("outdated", !busy() && gone);
  }

  /* The cursor: new words are written there, or suggested. A suggestion is drawn behind the text, which is clear
   * meanwhile: what follows the cursor stands after it. It is gone once the cursor or the text is another one. */

  let suggested = null; // where it begins, its words, a space after them, and the text that they are for
  let taken = ""; // of its words
  let telling = null; // as much of them as the server is told of now
  let askedAt = 0; // where it was asked for

  // The text to the cursor and what follows; in a word, to the end of that. Where nothing follows, or nothing is
  // before, all of it.
  function parted(text) {
    const { value, selectionEnd } = area();
    let cut = value === text ? selectionEnd : text.length;
    if (/[\p{L}\p{N}]$/u.test(text.slice(0, cut))) cut += /^[\p{L}\p{N}]*/u.exec(text.slice(cut))[0].length;
    const parts = [text.slice(0, cut), text.slice(cut)];
    return parts.every((each) => each.trim()) ? parts : [text, ""];
  }

  // The text to the end of what was written last, and what follows that.
  function atRest(text) {
    const end = text.length - (text === written() ? (view?.props.value.rest ?? 0) : 0);
    return [text.slice(0, end), text.slice(end)];
  }

  function atCursor(model, text, _, ...others) {
    const parts = parted(text);
    askedAt = parts[0].length;
    follows ||= parts[1] !== "";
    return [model, ...parts, ...others];
  }

  function tellWhere() {
    const line = document.querySelector("#where .remark");
    if (!line) return;
    const { value } = area();
    const now = suggested
      ? KEYS_OF_SUGGESTION
      : value && parted(value)[1]
        ? "<b>Generate writes at the cursor</b>; what follows stays."
        : "Generate writes at the end of the text.";
    if (line.dataset.now === now) return;
    line.dataset.now = now;
    line.innerHTML = now;
  }

  const HOW = "Tab takes a word, Enter all, Escape drops it.";
  const KEYS_OF_SUGGESTION = [
    ["word", "Next word", "Tab"],
    ["all", "Take all", "Enter"],
    ["drop", "Drop", "Esc"],
  ]
    .map(([name, words, key]) => `<button data-take="${name}">${words} <kbd>${key}</kbd></button>`)
    .join("");

  function noteCursor() {
    const text = area();
    if (!text) return;
    if (suggested && text.selectionEnd !== suggested.at && document.activeElement === text) drop();
    else tellWhere();
  }

  function drop() {
    suggested = null;
    draw();
  }

  const [WORD, ALL] = [/^\s*\S+/, /^.*$/s];

  function takeWords(pattern, trigger) {
    const { at, words, gap, text } = suggested;
    const [now] = pattern.exec(words);
    const left = words.slice(now.length);
    const [place, element] = [at + now.length, area()];
    // The space is put in with the first word.
    const whole = text.slice(0, at) + now + (taken ? "" : gap) + text.slice(at);
    suggested = left.trim() ? { at: place, words: left, gap: "", text: whole } : null;
    taken += now;
    element.value = whole;
    element.setSelectionRange(place, place);
    element.dispatchEvent(new Event("input", { bubbles: true }));
    say(now.trim());
    if (telling === null) tell(trigger);
  }

  // Once for all that was taken meanwhile: of two that are under way, the later answer could be overtaken.
  function tell(trigger) {
    telling = taken;
    trigger("select", { taken });
  }

  let takeSuggested; // by a pattern of its beginning
  let tellMore; // when the server has answered

  // Whether the key did something to what is suggested.
  function takeByKey({ key, target, shiftKey, ctrlKey, metaKey, altKey, isComposing }) {
    if (!suggested || busy() || isComposing || shiftKey || ctrlKey || metaKey || altKey) return false;
    if (key === "Escape") drop();
    else if (!target.matches(TEXT)) return false;
    else if (key === "Tab") takeSuggested(WORD);
    else if (key === "Enter" || key === "ArrowRight") takeSuggested(ALL);
    else return false;
    return true;
  }

  function listenToSuggestion(element, trigger, props, watch) {
    takeSuggested = (pattern) => takeWords(pattern, trigger);
    tellMore = () => {
      const isMore = telling !== null && telling !== taken;
      telling = null;
      if (isMore) tell(trigger);
    };
    watch("value", () => {
      const { text: words = "", gap = "" } = props.value || {};
      const text = area();
      // Tab takes words from here; where a keyboard on the screen would cover them, the buttons do.
      if (words && !suggested && !touched) text.focus({ preventScroll: true });
      suggested = words ? { at: askedAt, words, gap, text: text.value } : null;
      [taken, telling] = ["", null];
      if (suggested) text.setSelectionRange(askedAt, askedAt);
      requestAnimationFrame(draw); // what is around it may have been drawn anew
    });
    element.addEventListener("click", (event) => {
      const name = event.target.closest("button")?.dataset.take;
      if (!name || !suggested || busy()) return;
      if (name === "drop") drop();
      else takeSuggested(name === "word" ? WORD : ALL);
      if (!suggested && !touched) area().focus();
    });
    drawSoon();
  }

  const drawSoon = () => setTimeout(draw); // when Gradio has set the text, too

  function choose(index) {
    const end = tokens();
    const target = tokenOf(index);
    if (index === end ? isOutdated() || !view.props.value.below : !target) return;
    opened = index;
    for (const other of document.querySelectorAll(".tok.chosen")) other.classList.remove("chosen");
    target?.classList.add("chosen");
    if (target) say(`${target.textContent.trim()}, ${view.props.value.samples[0].percents[index]} %`);
    open();
    view.trigger("select", { sample: 0, token: index });
  }

  const open = () => document.querySelector("#choices")?.classList.remove("closed");

  function close() {
    document.querySelector("#choices")?.classList.add("closed");
    for (const other of document.querySelectorAll(".tok.chosen")) other.classList.remove("chosen");
    opened = -1;
  }

  const tokenAt = ({ clientX, clientY }) =>
    document.elementsFromPoint(clientX, clientY).find((element) => element.matches("#ink .tok"));

  // The token after the caret; behind the last one, what could come next.
  function chooseAtCaret() {
    const { selectionStart: caret, selectionEnd, value } = area();
    if (caret !== selectionEnd || !view) return;
    const { ends } = common(value);
    const index = ends.findIndex((end) => caret < end);
    choose(index >= 0 ? index : tokens());
  }

  // A first tap shows a token's alternatives; where a keyboard would cover them, only a second one edits there.
  let touched = false;
  function tap(event) {
    if (!event.target.matches(TEXT) || !touched || document.activeElement === event.target) return;
    const target = tokenAt(event);
    if (!target || +target.dataset.i === opened) return;
    event.preventDefault();
    choose(+target.dataset.i);
  }

  function chooseByClick(event) {
    if (!event.target.matches(TEXT) || !view) return;
    const { selectionStart, selectionEnd } = event.target;
    const target = tokenAt(event);
    if (target) {
      if (+target.dataset.i !== opened && selectionStart === selectionEnd) choose(+target.dataset.i);
    } else if (selectionStart === event.target.value.length) chooseAtCaret();
  }

  const MOVES = /^(Arrow|Home|End|Page)/;
  let moving;
  function chooseByKey(event) {
    if (!event.target.matches(TEXT) || !MOVES.test(event.key) || event.shiftKey || busy()) return;
    clearTimeout(moving);
    moving = setTimeout(chooseAtCaret, PAUSE);
  }

  // Where the newest word ends in the text, from its top.
  function newest() {
    const last = document.querySelector(suggested ? "#ink .ghost" : "#ink [data-i]:last-of-type");
    const { scrollHeight, value } = area();
    return last && (suggested || atRest(value)[1]) ? last.offsetTop + last.offsetHeight : scrollHeight;
  }

  // Not on every scroll: that of a text which grew is no wish of the reader.
  function noteScroll({ target }) {
    if (!target.matches?.(TEXT)) return;
    follows = target.scrollTop + target.clientHeight > newest() - 40;
    const ink = document.querySelector("#ink");
    if (ink) ink.scrollTop = target.scrollTop;
  }

  // The pointer names the token that it is on.
  function nameToken(event) {
    if (!event.target.matches?.(TEXT)) return;
    const target = tokenAt(event);
    event.target.title = target ? `${view.props.value.samples[0].percents[+target.dataset.i]} %` : "";
  }

  const switchColours = ({ target }) =>
    target.matches("#colours") && document.querySelector("#text").classList.toggle("plain", !target.checked);

  /* What is below the text: samples side by side, or what was found of it. */

  function token(piece, percent, sample, index, first) {
    const words = escaped(piece);
    if (piece === "" || percent < 0) return words; // none, or not known
    return (
      `<span role="button" tabindex="${first ? 0 : -1}" class="tok p${level(percent)}" data-s="${sample}" ` +
      `data-i="${index}" title="${percent} %" aria-label="${words.trim()}, ${percent} %">${words}</span>`
    );
  }

  function article(title, { pieces, percents, known, end }, n) {
    const words = pieces.slice(known).map((piece, i) => {
      return token(piece, percents[known + i], n, known + i, i === 0);
    });
    const ending = end ? `<span class="end">${end}</span>` : "";
    return `<article><h2>${title}</h2><mark>${words.join("")}</mark>${ending}</article>`;
  }

  function completions({ samples, below = "", hint = "" }) {
    if (samples.length < 2) return `<div>${below ? STALE : ""}${below}${hint}</div>`;
    const articles = samples.map((sample, n) => {
      const take = `<button class="take" data-s="${n}">Use this one</button>`;
      return article(`Sample ${n + 1} ${take}`, sample, n);
    });
    return (
      `<div>${STALE}<div class="view" role="region" tabindex="0" aria-label="Samples">` +
      `${articles.join("")}</div></div>`
    );
  }

  function comparison({ sides }) {
    const articles = sides.map((side, n) => `<div>${article(side.title, side, n)}${side.below}</div>`);
    return sides.length
      ? `<div class="view" role="region" tabindex="0" aria-label="Both sides">${articles.join("")}</div>`
      : "<div></div>";
  }

  const STALE = '<p class="remark stale">What is below is of the text before it was edited.</p>';

  // In samples: one stop of the Tab key, arrows from token to token, Enter or a click chooses.
  function listenToTokens(element, trigger) {
    const isOld = () => element === view?.element && isOutdated();
    const pick = (target) => {
      if (isOld()) return;
      close();
      open();
      target.classList.add("chosen");
      trigger("select", { sample: +target.dataset.s, token: +target.dataset.i });
    };
    element.addEventListener("click", (event) => {
      const take = event.target.closest(".take");
      const sentence = event.target.closest("button[data-start]");
      const target = event.target.closest(".tok");
      if (take && !busy() && !isOld()) trigger("submit", { sample: +take.dataset.s });
      else if (sentence && !isOld()) selectText(+sentence.dataset.start, +sentence.dataset.end);
      else if (target) pick(target);
    });
    element.addEventListener("keydown", (event) => {
      const target = event.target.closest(".tok");
      if (!target) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        const all = [...element.querySelectorAll(".tok")];
        const next = all[all.indexOf(target) + step];
        if (next) {
          target.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        }
        event.preventDefault();
      } else if ((event.key === "Enter" || event.key === " ") && !event.ctrlKey && !event.metaKey) {
        pick(target);
        event.preventDefault();
      }
    });
  }

  function selectText(first, last) {
    const text = area();
    text.blur();
    text.setSelectionRange(first, last);
    text.focus(); // which brings it into sight
  }

  function listenToView(element, trigger, props, watch) {
    view = { element, trigger, props };
    listenToTokens(element, trigger);
    watch("value", () => {
      if (!tokens()) opened = -1;
      drawSoon();
    });
    drawSoon();
  }

  function listenToAlternatives(element, trigger, props, watch) {
    watch("value", () => {
      open();
      const [, index] = /data-s="0" data-i="(\d+)"/.exec(props.value) ?? [];
      if (index && view?.props.value.samples.length === 1) opened = +index;
      drawSoon();
    });
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      if (button.matches(".close")) return close();
      const { s: sample, i: index, rank } = button.dataset;
      const isThere = +sample === 0 && tokenOf(index);
      if (busy() || (isOutdated() && !isThere)) return; // a run would write into the same text
      trigger("select", { sample: +sample, token: +index, rank: +rank });
    });
  }

  /* Attention. Chosen: outlined. Looked at: tinted, and the share written, above two percent. */

  const attention = ({ note, tokens: words }) =>
    `<div class="attention">${note}<div class="tokens">${words
      .map((word, i) => `<button data-i="${i}" aria-pressed="false">${word}</button>`)
      .join("")}</div></div>`;

  function listenToAttention(element, props, watch) {
    let last = -1;
    const look = (index) => {
      const row = props.value.rows[index] || [];
      const most = Math.max(...row, 1);
      element.querySelectorAll(".tokens button").forEach((button, i) => {
        button.setAttribute("aria-pressed", i === index);
        button.style.setProperty("--share", (row[i] || 0) / most);
        button.dataset.share = row[i] >= 2 ? `${row[i]} %` : "";
        button.title = i <= index ? `${row[i] || 0} % of the attention` : "comes later";
      });
    };
    element.addEventListener("click", (event) => {
      const button = event.target.closest(".tokens button");
      if (!button) return;
      last = +button.dataset.i;
      look(last);
    });
    watch("value", () => {
      const end = props.value.tokens.length - 1;
      if (end >= 0) look(last >= 0 && last <= end ? last : end);
    });
  }

  window.biogpt = {
    atCursor,
    attention,
    begun,
    chosen,
    comparison,
    completions,
    copyLink,
    copyText,
    drawSoon,
    ended,
    brokenOff,
    given,
    listenToAlternatives,
    listenToAttention,
    listenToSuggestion,
    listenToTokens,
    listenToView,
    nameOf,
    nameRun,
    outdated,
    parted,
    recall,
    remember,
    saveFile,
    session,
    start,
    stop,
    stopped,
    tellMore: () => tellMore(),
    visibleWith,
    withOwnAddress,
    withTab,
  };
}
