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
  const SETTLE = 300; // milliseconds in which the events of a stopped run arrive

  const update = (changes) => ({ __type__: "update", ...changes });
  const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const busy = () => document.querySelector("#generate").disabled;

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
    const enter = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (!enter && event.key !== "Escape") return;
    const buttons = [...document.querySelectorAll(enter ? RUN : STOP)];
    const button = buttons.find((candidate) => candidate.offsetParent !== null);
    if (!button || button.disabled) return;
    event.preventDefault();
    button.click();
  }

  function nameKey(event) {
    for (const [buttons, key] of Object.entries(KEYS)) {
      const button = event.target.closest?.(buttons);
      if (button) button.title = key;
    }
  }

  // Gradio tells of keys, but not of what is pasted or cut.
  let counting;
  function countTyped(event) {
    if (!event.target.matches(TEXT)) return;
    clearTimeout(counting);
    counting = setTimeout(() => document.querySelector("#typed").click(), PAUSE);
    markOutdated();
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
  }

  /* Buttons of a form, the last of which stops what the others begin. They are switched here, since Stop also
   * has to work while a run waits in line. The end of a stopped run is told several times, within a moment,
   * before or after Stop has done its work. Were it heeded, a run that began meanwhile could not be stopped. */

  const stopping = new Set(); // names of forms

  function switched(form, count, running) {
    if (form === "write") {
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
    return [...Array(cleared).fill(""), ...switched(form, count, true)];
  }

  function ended(form, count) {
    if (document.querySelector(`#${form}-status .refusal`)) kept.read[form] = askedBefore;
    return stopping.has(form) ? Array(count).fill(update()) : switched(form, count, false);
  }

  const outdated = (form, ...given) =>
    kept.read[form] === undefined || kept.read[form] === asked(given)
      ? ""
      : '<p class="remark stale" role="status">The results below were found in another text, ' +
        "or with other settings.</p>";

  const stop = (form) => {
    stopping.add(form);
  };

  async function stopped(form, count) {
    await wait(SETTLE);
    stopping.delete(form);
    return switched(form, count, false);
  }

  /* Values of components */

  const given = (values) => values;
  const chosen = (table, name) => table[name];
  const visibleWhen = (wanted, value) => update({ visible: value === wanted });

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
    const samples = [...document.querySelectorAll("#view article mark")].map((mark) => text + mark.textContent);
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

  /* What was generated: tokens in the colours of their probabilities. All text comes escaped. */

  function token(piece, percent, sample, index) {
    if (piece === "") return "";
    if (percent < 0) return piece; // not known yet
    const level = [50, 20, 5, 0].findIndex((least) => percent >= least);
    return (
      `<span role="button" tabindex="${index ? -1 : 0}" class="tok p${level}" ` +
      `data-s="${sample}" data-i="${index}" title="${percent} %">${piece}</span>`
    );
  }

  function completions({ given: text, samples, hint }) {
    const parts = samples.map(({ pieces, percents, end }, n) => {
      const tokens = pieces.map((piece, i) => token(piece, percents[i], n, i)).join("");
      const marked = `<mark>${tokens}</mark>${end}`;
      if (samples.length === 1) return marked;
      const take = `<button class="take" data-s="${n}">Use this one</button>`;
      return `<article><h3>Sample ${n + 1} ${take}</h3>${marked}</article>`;
    });
    return (
      '<p class="remark stale">The colours below are of the text before it was edited.</p>' +
      '<div class="view" role="region" tabindex="0" aria-label="The text, with what was generated marked">' +
      `<span>${text}</span>${parts.join("")}<em>${hint}</em></div>`
    );
  }

  // A text that is edited leaves its colours behind; nothing can be chosen of them then.
  let written = () => undefined;
  const isOutdated = () => written() !== undefined && written() !== document.querySelector(TEXT).value;

  function markOutdated() {
    const stale = !busy() && isOutdated();
    for (const part of document.querySelectorAll("#view, #choices, #status"))
      part.classList.toggle("outdated", stale);
  }

  // One stop of the Tab key, arrows from token to token, Enter or a click chooses.
  function listenToTokens(element, trigger, props, watch) {
    written = () => props.value.text;
    watch("value", () => setTimeout(markOutdated, PAUSE));
    const tokens = () => [...element.querySelectorAll(".tok")];
    const choose = (target) => {
      if (isOutdated()) return;
      for (const other of tokens()) other.classList.toggle("chosen", other === target);
      trigger("select", { sample: +target.dataset.s, token: +target.dataset.i });
    };
    element.addEventListener("click", (event) => {
      const take = event.target.closest(".take");
      const target = event.target.closest(".tok");
      if (take && !busy() && !isOutdated()) trigger("submit", { sample: +take.dataset.s });
      else if (target) choose(target);
    });
    element.addEventListener("keydown", (event) => {
      const target = event.target.closest(".tok");
      if (!target) return;
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        const all = tokens();
        const next = all[all.indexOf(target) + step];
        if (next) {
          target.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        }
        event.preventDefault();
      } else if ((event.key === "Enter" || event.key === " ") && !event.ctrlKey && !event.metaKey) {
        choose(target);
        event.preventDefault();
      }
    });
  }

  function listenToAlternatives(element, trigger) {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || busy() || isOutdated()) return; // a run would write into the same text
      trigger("select", { sample: +button.dataset.s, token: +button.dataset.i, rank: +button.dataset.rank });
    });
  }

  /* Attention. Chosen: outlined. Looked at: tinted, and the share written, above two percent. */

  const attention = ({ note, tokens }) =>
    `<div class="attention">${note}<div class="tokens">${tokens
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
    attention,
    begun,
    chosen,
    completions,
    copyLink,
    copyText,
    ended,
    given,
    listenToAlternatives,
    listenToAttention,
    listenToTokens,
    nameOf,
    nameRun,
    outdated,
    recall,
    remember,
    saveFile,
    session,
    start,
    stop,
    stopped,
    visibleWhen,
    withOwnAddress,
    withTab,
  };
}
