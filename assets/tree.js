/* The tree of continuations: drawn, folded and walked through in the browser. Loaded after page.js. */

"use strict";

{
  let folded = new Set(); // numbers of nodes
  let selected = 0;
  let planted = ""; // the prompt of the tree that these are of, and its kind
  let size = 0; // of that tree, in nodes
  let chosen = false; // the selected one is the reader's choice

  const escaped = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt()};`);
  const percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return `${share >= 9.95 ? share.toFixed(0) : share >= 0.05 ? share.toFixed(1) : "<0.1"} %`;
  };

  const figure = (value) => value.toFixed(2).replace("-", "\u2212");
  const nth = (rank) => `${rank}${["st", "nd", "rd"][rank - 1] ?? "th"}`;

  // How the paths of a beam search stand, in words, by the numbers of their last nodes; all nodes of those that were
  // not dropped; and of each node its place by the best path through it.
  function standing({ nodes, search }) {
    const [words, lives, places] = [new Map(), new Set(), new Map()];
    let rank = 0;
    for (const { node, state, score, step } of search?.beams ?? []) {
      if (state === "finished") {
        rank += 1;
        words.set(node, `${search.is_over && rank === 1 ? "best" : nth(rank)}, ${figure(score)}`);
      } else words.set(node, state === "alive" ? "alive" : `dropped at ${step}`);
      for (let at = node; at >= 0; at = nodes[at].parent) {
        if (!places.has(at)) places.set(at, places.size);
        if (state !== "dropped") lives.add(at);
      }
    }
    return { words, lives, places };
  }

  function childrenOf(nodes) {
    const children = new Map();
    nodes.forEach(({ parent }, number) => {
      if (!children.has(parent)) children.set(parent, []);
      children.get(parent).push(number);
    });
    return children;
  }

  // Of a beam search the best path goes straight down, and what turns off it is set in: it may be long.
  function rows(value, children, stands, parent, level) {
    const below = children.get(parent);
    const place = (number) => stands.places.get(number);
    const main = value.search && below.reduce((one, other) => (place(other) < place(one) ? other : one));
    const inOrder = value.search ? [...below.filter((child) => child !== main), main] : below;
    return inOrder.map((child) => row(value, children, stands, child, level, value.search && child !== main)).join("");
  }

  // Nodes without a sibling read as one with the node before them; the number of a row is that of its last.
  function row(value, children, stands, first, level, aside) {
    const { nodes, search } = value;
    let last = first;
    let text = nodes[first].text;
    let own = nodes[first].logprob;
    while (children.get(last)?.length === 1) {
      [last] = children.get(last);
      text += nodes[last].text;
      own += nodes[last].logprob;
    }
    const { total, ended } = nodes[last];
    const name = ended ? `${text} (end of text)` : text;
    const opens = children.has(last);
    const word = stands.words.get(last) ?? "";
    const lives = stands.lives.has(last) ? word && "lives" : "dropped";
    const [spoken, kind, ...figures] = search
      ? [[name.trim(), word, `sum ${figure(total)}`].filter(Boolean).join(", "), lives, word, figure(total)]
      : [
          `${name.trim()}, ${percent(own)}, of the path ${percent(total)}`,
          "",
          percent(own),
          level > 1 ? percent(total) : "",
        ];
    const words = kind === "dropped" ? name.replace(/\S.*/s, (said) => `<s>${escaped(said)}</s>`) : escaped(name);
    return (
      `<li role="treeitem" aria-level="${level}" data-node="${last}" tabindex="${last === selected ? 0 : -1}" ` +
      `aria-selected="${last === selected}" aria-label="${escaped(spoken)}"` +
      (opens ? ` aria-expanded="${!folded.has(last)}"` : "") +
      (aside ? ' class="aside"' : "") +
      `><div class="node ${kind}"><i class="fold" aria-hidden="true"></i><span>${words}</span>` +
      `<b>${escaped(figures[0])}</b><small>${escaped(figures[1])}</small></div>` +
      (opens ? `<ul role="group">${rows(value, children, stands, last, level + 1)}</ul>` : "") +
      "</li>"
    );
  }

  const COUNT = "Of each branch: its probability, and that of the path from the start.";

  const HOW = "Of each path: the sum of its log-probabilities; nearer 0 is likelier. What has ended is ranked by";

  function remarkOf(search) {
    if (!search) return COUNT;
    const power = { 0: "", 1: " / tokens" }[search.length_penalty] ?? ` / tokens<sup>${search.length_penalty}</sup>`;
    return `${HOW} sum${power}, after penalties.`;
  }

  function tree(value) {
    const { prompt, nodes, search } = value;
    if (!nodes.length) return "";
    const children = childrenOf(nodes);
    const stands = standing(value);
    if (planted !== `${prompt}\n${!!search}` || nodes.length < size) {
      folded = new Set();
      planted = `${prompt}\n${!!search}`;
      selected = -1;
      chosen = false;
    }
    size = nodes.length;
    if (search && !chosen) selected = search.beams[0].node;
    const rowOf = (number) => {
      while (children.get(number)?.length === 1) [number] = children.get(number);
      return number;
    };
    selected = rowOf(nodes[selected] ? selected : children.get(-1)[0]);
    folded = new Set([...folded].map(rowOf));
    const before = prompt.length > 60 ? `…${prompt.slice(-60)}` : prompt;
    return (
      `<div class="branches${search ? " search" : ""}"><p class="remark">${remarkOf(search)}</p>` +
      `<p class="stem">${escaped(before)}</p>` +
      `<ul role="tree" aria-label="Continuations">` +
      rows(value, children, stands, -1, 1) +
      '</ul><div class="path" role="group" aria-label="The chosen branch"><p></p>' +
      `<button data-do="fold">Fold</button>${search ? "" : '<button data-do="expand">Expand here</button>'}` +
      '<button data-do="keep">Keep as the text</button><button data-do="save">Download JSON</button></div></div>'
    );
  }

  function listenToTree(element, trigger, props, watch) {
    const items = () => [...element.querySelectorAll("[role=treeitem]")];
    const visible = () => items().filter((item) => !item.parentElement.closest("[aria-expanded=false]"));
    const item = () => element.querySelector(`[data-node="${selected}"]`);

    function path(number) {
      const { nodes } = props.value;
      let text = "";
      for (let at = number; at >= 0; at = nodes[at].parent) text = nodes[at].text + text;
      return text;
    }

    function describe() {
      const { nodes, search } = props.value;
      const shown = item();
      if (!shown) return;
      const button = (name) => element.querySelector(`[data-do=${name}]`);
      const opens = shown.hasAttribute("aria-expanded");
      const { total, ended } = nodes[selected];
      element.querySelector(".path p").textContent =
        `“${path(selected).trim()}” ${search ? figure(total) : percent(total)}`;
      button("fold").disabled = !opens;
      button("fold").textContent = shown.getAttribute("aria-expanded") === "false" ? "Unfold" : "Fold";
      if (!search) button("expand").disabled = opens || ended;
    }

    function select(target, focus = true) {
      if (!target) return;
      selected = +target.dataset.node;
      for (const other of items()) {
        other.tabIndex = other === target ? 0 : -1;
        other.setAttribute("aria-selected", other === target);
      }
      if (focus) target.focus();
      describe();
    }

    function fold(target, close) {
      if (!target.hasAttribute("aria-expanded")) return;
      const number = +target.dataset.node;
      if (close) folded.add(number);
      else folded.delete(number);
      target.setAttribute("aria-expanded", !close);
      describe();
    }

    const isOpen = (target) => target.getAttribute("aria-expanded") === "true";

    function save() {
      const file = new Blob([JSON.stringify(props.value, null, 1)], { type: "application/json" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(file);
      link.download = "tree.json";
      link.click();
      URL.revokeObjectURL(link.href);
    }

    const busy = () => document.querySelector("#generate").disabled || document.querySelector("#tree-make").disabled;
    const actions = {
      fold: () => fold(item(), isOpen(item())),
      expand: () => busy() || trigger("select", { node: selected }),
      keep: () => busy() || trigger("submit", { node: selected }),
      save,
    };

    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) return actions[button.dataset.do]?.();
      const target = event.target.closest("[role=treeitem]");
      if (!target) return undefined;
      chosen = true;
      select(target);
      if (event.target.closest(".fold")) fold(target, isOpen(target));
      return undefined;
    });

    element.addEventListener("keydown", (event) => {
      const target = event.target.closest("[role=treeitem]");
      if (!target || event.ctrlKey || event.metaKey || event.altKey) return;
      const shown = visible();
      const place = shown.indexOf(target);
      const opens = target.hasAttribute("aria-expanded");
      const moves = {
        ArrowDown: () => select(shown[place + 1]),
        ArrowUp: () => select(shown[place - 1]),
        Home: () => select(shown[0]),
        End: () => select(shown.at(-1)),
        ArrowRight: () => (opens && !isOpen(target) ? fold(target, false) : opens && select(shown[place + 1])),
        ArrowLeft: () =>
          isOpen(target) ? fold(target, true) : select(target.parentElement.closest("[role=treeitem]")),
        Enter: () => opens && fold(target, isOpen(target)),
        " ": () => opens && fold(target, isOpen(target)),
      };
      if (!moves[event.key]) return;
      chosen = true;
      moves[event.key]();
      event.preventDefault();
    });

    // What is drawn anew loses the focus, and where it was scrolled to.
    let held = false;
    let scrolled = 0;
    const list = () => element.querySelector("[role=tree]");
    element.addEventListener("scroll", ({ target }) => target === list() && (scrolled = target.scrollTop), true);
    document.addEventListener("focusin", ({ target }) => {
      held = element.contains(target);
    });
    watch("value", () =>
      requestAnimationFrame(() => {
        if (!props.value.nodes.length) return;
        list().scrollTop = scrolled;
        select(item(), held);
        // The best path is followed until the reader has chosen one.
        if (!props.value.search || chosen) return;
        const { bottom } = item().querySelector(".node").getBoundingClientRect();
        list().scrollTop += Math.max(0, bottom - list().getBoundingClientRect().bottom);
      }),
    );
  }

  Object.assign(window.biogpt, { listenToTree, tree });
}
