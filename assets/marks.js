/* Marks of entities that a reader corrects, and passages that this browser keeps as training data. Python counts
 * characters, the browser UTF-16 units: places are turned into characters when they are told. */

"use strict";

{
  const WORD = /[\p{L}\p{N}\p{M}]+|[^\s\p{L}\p{N}\p{M}]/gu;
  const KEPT = "biogpt-passages"; // the name in the browser's storage
  const MOST = 500; // passages; and the characters of what is stored, for browsers keep some five million
  const MOST_CHARACTERS = 2_000_000;
  const SETTLED = 500; // milliseconds until a selection made by touch counts as done

  const points = (text, units) => Array.from(text.slice(0, units)).length;

  const escaped = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt()};`);

  // One of the view's words, marks and words chosen on the way; a small dialog beside them says what they are.
  function listenToMarks(element, trigger, props, watch) {
    let place = null; // [start, end] in units of the text
    let dialog = null;
    let scrolled = 0;
    let comesBack = false; // to the view, once a correction is shown
    let pointer = "mouse";

    const view = () => element.querySelector(".view");
    const body = () => element.querySelector(".view > span");
    const text = () => body().textContent;
    const words = () => [...text().matchAll(WORD)].map((word) => [word.index, word.index + word[0].length]);
    const isFixed = () =>
      view()?.dataset.types === undefined ||
      element.closest(".column").querySelector(".stale") !== null ||
      !document.querySelector("#entities-stop").disabled;

    function unitsBefore(node, offset) {
      const range = document.createRange();
      range.setStart(body(), 0);
      range.setEnd(node, offset);
      return range.toString().length;
    }

    function select([start, end]) {
      const range = document.createRange();
      const walker = document.createTreeWalker(body(), NodeFilter.SHOW_TEXT);
      let passed = 0;
      while (walker.nextNode()) {
        const { length } = walker.currentNode.data;
        if (start >= passed && start < passed + length) range.setStart(walker.currentNode, start - passed);
        if (end > passed && end <= passed + length) range.setEnd(walker.currentNode, end - passed);
        passed += length;
      }
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      return range;
    }

    const spanOf = (mark) => {
      const start = unitsBefore(mark, 0);
      return [start, start + mark.textContent.length];
    };
    const markAt = ([start, end]) =>
      [...element.querySelectorAll("mark.entity")].find((mark) => {
        const [first, last] = spanOf(mark);
        return first <= start && end <= last;
      });

    function close() {
      dialog?.remove();
      dialog = null;
    }

    function leave() {
      close();
      view().focus({ preventScroll: true });
    }

    function tell(name, details) {
      scrolled = view().scrollTop;
      comesBack = true;
      close();
      trigger(name, details);
    }

    const inCharacters = ([start, end]) => [points(text(), start), points(text(), end)];

    function correct(label, span, old) {
      const [start, end] = inCharacters(span);
      const content = text().slice(...span);
      const trimmed = [span[0] + content.length - content.trimStart().length, span[1] - content.length + content.trimEnd().length];
      place = label ? trimmed : old;
      tell("select", { start, end, label, old: old && inCharacters(old) });
    }

    // An end of a span, moved by a word.
    function moved([start, end], which, step) {
      const all = words();
      const first = all.findIndex(([, last]) => last > start);
      const last = all.findLastIndex(([begin]) => begin < end);
      const to = which === "start" ? all[first + step]?.[0] : all[last + step]?.[1];
      const next = which === "start" ? [to ?? start, end] : [start, to ?? end];
      return next[0] < next[1] ? next : [start, end];
    }

    function open(span, mark) {
      if (isFixed()) return;
      close();
      const old = mark ? spanOf(mark) : null;
      let chosen = span;
      const types = JSON.parse(view().dataset.types);
      const hue = (type) => `hue-${types.indexOf(type) % 8}`;
      dialog = document.createElement("div");
      dialog.className = "correcting";
      dialog.setAttribute("role", "dialog");
      const buttons = types.map(
        (type) =>
          `<button type="button" class="type ${hue(type)}" data-type="${escaped(type)}" ` +
          `aria-pressed="${mark?.dataset.label === type}">${escaped(type)}</button>`,
      );
      const ends = [
        ["start", -1, "Begin a word earlier", "⇤"],
        ["start", 1, "Begin a word later", "⇥"],
        ["end", -1, "End a word earlier", "⇤"],
        ["end", 1, "End a word later", "⇥"],
      ].map(
        ([which, step, title, sign]) =>
          `<button type="button" data-end="${which}" data-step="${step}" title="${title}" ` +
          `aria-label="${title}">${sign}</button>`,
      );
      dialog.innerHTML =
        `<p><b></b></p><div class="types">${buttons.join("")}` +
        '<input type="text" maxlength="40" placeholder="Another type" aria-label="Another type, then Enter"></div>' +
        `<div>Begins ${ends[0]}${ends[1]} Ends ${ends[2]}${ends[3]}` +
        `${mark ? '<button type="button" data-remove>Remove</button>' : ""}` +
        '<button type="button" data-close>Close</button></div>';
      const show = () => {
        const range = select(chosen);
        dialog.querySelector("b").textContent = `“${text().slice(...chosen)}”`;
        dialog.setAttribute("aria-label", `${mark ? "Correct" : "Mark"} ${text().slice(...chosen)}`);
        const [frame, box] = [element.getBoundingClientRect(), range.getBoundingClientRect()];
        const inView = view().getBoundingClientRect();
        const below = Math.min(Math.max(box.bottom, inView.top), inView.bottom);
        dialog.style.top = `${below - frame.top + 4}px`;
        dialog.style.left = `${Math.max(0, Math.min(box.left - frame.left, frame.width - dialog.offsetWidth))}px`;
      };
      element.append(dialog);
      show();
      dialog.addEventListener("click", ({ target }) => {
        const button = target.closest("button");
        if (!button) return;
        if (button.dataset.type) correct(button.dataset.type, chosen, old);
        else if (button.dataset.remove !== undefined) correct("", chosen, old);
        else if (button.dataset.close !== undefined) leave();
        else {
          chosen = moved(chosen, button.dataset.end, +button.dataset.step);
          show();
        }
      });
      dialog.addEventListener("keydown", (event) => {
        event.stopPropagation(); // Esc closes this and stops nothing
        if (event.key === "Escape") leave();
        if (event.key === "Enter" && event.target.matches("input") && event.target.value.trim()) {
          event.preventDefault();
          correct(event.target.value.trim(), chosen, old);
        }
      });
      dialog.querySelector("[aria-pressed=true], button").focus({ preventScroll: true });
    }

    // What is selected, out to the ends of its words; nothing where that is white space or beyond the text.
    function selected() {
      const selection = getSelection();
      if (!selection.rangeCount || selection.isCollapsed || !body()) return null;
      const range = selection.getRangeAt(0);
      if (!body().contains(range.startContainer) || !body().contains(range.endContainer)) return null;
      const from = unitsBefore(range.startContainer, range.startOffset);
      const to = unitsBefore(range.endContainer, range.endOffset);
      const within = words().filter(([start, end]) => end > from && start < to);
      return within.length ? [within[0][0], within.at(-1)[1]] : null;
    }

    function openSelected() {
      const span = selected();
      if (!span || dialog) return;
      const mark = markAt(span);
      place = span;
      open(span, mark && spanOf(mark).join() === span.join() ? mark : null);
    }

    element.addEventListener("pointerdown", (event) => {
      pointer = event.pointerType;
      if (dialog && !dialog.contains(event.target)) close();
    });
    element.addEventListener("pointerup", (event) => {
      if (pointer === "mouse" && !dialog?.contains(event.target)) setTimeout(openSelected);
    });
    let settling;
    document.addEventListener("selectionchange", () => {
      clearTimeout(settling);
      if (pointer !== "mouse" && !dialog) settling = setTimeout(openSelected, SETTLED);
    });
    element.addEventListener("click", ({ target }) => {
      const mark = target.closest("mark.entity");
      if (!mark || !getSelection().isCollapsed) return;
      place = spanOf(mark);
      open(place, mark);
    });
    element.addEventListener("keydown", (event) => {
      if (event.target !== view() || event.altKey) return;
      const held = event.ctrlKey || event.metaKey;
      if (held && event.key === "z") tell("undo", {});
      else if (held) return;
      else if (event.key === "ArrowRight" || event.key === "ArrowLeft") walk(event);
      else if (event.key === "Enter" && place) open(markAt(place) ? spanOf(markAt(place)) : place, markAt(place));
      else if ((event.key === "Delete" || event.key === "Backspace") && place && markAt(place) && !isFixed())
        correct("", place, spanOf(markAt(place)));
      else return;
      event.preventDefault();
    });

    function walk({ key, shiftKey }) {
      const step = key === "ArrowRight" ? 1 : -1;
      if (shiftKey && place) place = moved(place, "end", step);
      else {
        const all = words();
        const now = place ? all.findIndex(([start]) => start >= place[0]) : -1;
        place = all[Math.min(Math.max(now + step, 0), all.length - 1)] ?? null;
      }
      if (!place) return;
      pointer = "mouse"; // a selection made by keys opens nothing
      const box = select(place).getBoundingClientRect();
      const frame = view().getBoundingClientRect();
      if (box.top < frame.top || box.bottom > frame.bottom) view().scrollTop += box.top - frame.top - frame.height / 2;
      const label = markAt(place)?.dataset.label;
      element.dataset.word = `${text().slice(...place)}${label ? `, ${label}` : ""}`;
      said.textContent = element.dataset.word;
    }

    const said = document.createElement("div");
    said.className = "spoken";
    said.setAttribute("role", "status");
    element.parentElement.append(said);

    watch("value", () => {
      close();
      if (!comesBack) {
        place = null;
        return;
      }
      comesBack = false;
      setTimeout(() => {
        view().scrollTop = scrolled;
        view().focus({ preventScroll: true });
        getSelection().removeAllRanges(); // the next click chooses a mark, not what was selected before
      });
    });
  }

  /* Passages that were checked. Every tab reads the list anew before it changes it. */

  function kept() {
    try {
      return JSON.parse(localStorage.getItem(KEPT)) ?? [];
    } catch {
      return [];
    }
  }

  function keptLine(said = "") {
    const rows = kept();
    if (!rows.length) return said ? `<p class="remark" role="status">${said}</p>` : "";
    const entities = rows.reduce((sum, row) => sum + row.entities.length, 0);
    return (
      `<p class="remark some" role="status">${said} <b>${rows.length} of at most ${MOST} passages, ${entities} entities</b> ` +
      "are kept in this browser alone, until you clear them. Train with " +
      "<code>python -m biogpt train ner --train FILE --out my-tagger</code>: JSONL, CoNLL and PubTator.</p>"
    );
  }

  function store(rows, said) {
    try {
      localStorage.setItem(KEPT, JSON.stringify(rows));
    } catch {
      return keptLine("The browser has no room for more: download what is kept, then clear it.");
    }
    return keptLine(said);
  }

  // A passage that is kept again takes the place of what was kept of it.
  function keepPassage(given) {
    const row = JSON.parse(given);
    const rows = [...kept().filter((other) => other.text !== row.text), row];
    if (rows.length > MOST || JSON.stringify(rows).length > MOST_CHARACTERS)
      return keptLine("That is more than a browser keeps: download what is there, then clear it.");
    return store(rows, "Kept.");
  }

  const keptPassages = () => [JSON.stringify(kept())];
  const takeOutPassage = () => store(kept().slice(0, -1), "The last one is taken out.");
  const clearPassages = () => store([], "Cleared.");

  function showKept(props, watch) {
    props.value = keptLine();
    // Gradio sets what it thinks the line is when the page comes back.
    watch("value", () => {
      if (!props.value && kept().length) props.value = keptLine();
    });
    addEventListener("storage", ({ key }) => {
      if (key === KEPT) props.value = keptLine();
    });
  }

  Object.assign(window.biogpt, {
    clearPassages,
    keepPassage,
    keptPassages,
    listenToMarks,
    showKept,
    takeOutPassage,
  });
}
