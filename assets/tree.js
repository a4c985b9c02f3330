/* The tree of continuations: drawn, folded and walked through in the browser. Loaded after page.js. */

"use strict";

{
  let folded = new Set(); // numbers of nodes
  let selected = 0;
  let planted = ""; // the prompt of the tree that these are of

  const escaped = (text) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt()};`);
  const percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return `${share >= 9.95 ? share.toFixed(0) : share >= 0.05 ? share.toFixed(1) : "<0.1"} %`;
  };

  function childrenOf(nodes) {
    const children = new Map();
    nodes.forEach(({ parent }, number) => {
      if (!children.has(parent)) children.set(parent, []);
      children.get(parent).push(number);
    });
    return children;
  }

  // Nodes without a sibling read as one with the node before them; the number of a row is that of its last.
  function row(nodes, children, first, level) {
    let last = first;
    let text = nodes[first].text;
    let own = nodes[first].logprob;
    while (children.get(last)?.length === 1) {
      [last] = children.get(last);
      text += nodes[last].text;
      own += nodes[last].logprob;
    }
    const below = children.get(last) ?? [];
    const { total, ended } = nodes[last];
    const name = ended ? `${text} (end of text)` : text;
    const opens = below.length > 0;
    const spoken = `${name.trim()}, ${percent(own)}, of the path ${percent(total)}`;
    return (
      `<li role="treeitem" aria-level="${level}" data-node="${last}" tabindex="${last === selected ? 0 : -1}" ` +
      `aria-selected="${last === selected}" aria-label="${escaped(spoken)}"` +
      (opens ? ` aria-expanded="${!folded.has(last)}"` : "") +
      `><div class="node"><i class="fold" aria-hidden="true"></i><span>${escaped(name)}</span>` +
      `<b>${escaped(percent(own))}</b><small>${level > 1 ? escaped(percent(total)) : ""}</small></div>` +
      (opens
        ? `<ul role="group">${below.map((child) => row(nodes, children, child, level + 1)).join("")}</ul>`
        : "") +
      "</li>"
    );
  }

  const COUNT = "Of each branch: its probability, and that of the path from the start.";

  function tree({ prompt, nodes }) {
    if (!nodes.length) return "";
    const children = childrenOf(nodes);
    if (planted !== prompt) {
      folded = new Set();
      planted = prompt;
      selected = -1;
    }
    const rowOf = (number) => {
      while (children.get(number)?.length === 1) [number] = children.get(number);
      return number;
    };
    selected = rowOf(nodes[selected] ? selected : children.get(-1)[0]);
    folded = new Set([...folded].map(rowOf));
    const before = prompt.length > 60 ? `…${prompt.slice(-60)}` : prompt;
    return (
      `<div class="branches"><p class="remark">${COUNT}</p><p class="stem">${escaped(before)}</p>` +
      `<ul role="tree" aria-label="Continuations">` +
      children
        .get(-1)
        .map((child) => row(nodes, children, child, 1))
        .join("") +
      '</ul><div class="path" role="group" aria-label="The chosen branch"><p></p>' +
      '<button data-do="fold">Fold</button><button data-do="expand">Expand here</button>' +
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
      const { nodes } = props.value;
      const chosen = item();
      if (!chosen) return;
      const button = (name) => element.querySelector(`[data-do=${name}]`);
      const opens = chosen.hasAttribute("aria-expanded");
      element.querySelector(".path p").textContent = `“${path(selected).trim()}” ${percent(nodes[selected].total)}`;
      button("fold").disabled = !opens;
      button("fold").textContent = chosen.getAttribute("aria-expanded") === "false" ? "Unfold" : "Fold";
      button("expand").disabled = opens || nodes[selected].ended;
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
      moves[event.key]();
      event.preventDefault();
    });

    // What is drawn anew loses the focus.
    let held = false;
    document.addEventListener("focusin", ({ target }) => {
      held = element.contains(target);
    });
    watch("value", () =>
      requestAnimationFrame(() => {
        if (props.value.nodes.length) select(item(), held);
      }),
    );
  }

  Object.assign(window.biogpt, { listenToTree, tree });
}
