/* What is kept in the browser, by name: texts and settings; and what is taken away: JSON, Markdown, a picture.
 * Nothing is stored elsewhere. Loaded after page.js. */

"use strict";

{
  const STORE = "biogpt-kept";
  const MOST = 200; // of a file that is imported
  const COLOURS = ["#d9ece9", "#fdf1bd", "#fbd49a", "#f5aca0"]; // of tokens, as on the page in light

  const escaped = (text) => String(text).replace(/[&<>"]/g, (character) => `&#${character.charCodeAt()};`);
  let redraw = () => undefined;

  function all() {
    try {
      const found = JSON.parse(localStorage.getItem(STORE));
      return found && typeof found === "object" && !Array.isArray(found) ? found : {};
    } catch {
      return {};
    }
  }

  // False where the browser keeps no more.
  function store(entries) {
    try {
      localStorage.setItem(STORE, JSON.stringify(entries));
      redraw();
      return true;
    } catch {
      return false;
    }
  }

  const kindOf = ({ what }) => (what === "settings" ? "settings" : "text");

  function listed() {
    const rows = Object.entries(all()).toSorted(([, one], [, other]) => (one.saved < other.saved ? 1 : -1));
    if (!rows.length) return '<p class="remark">Nothing is saved yet.</p>';
    const items = rows.map(([name, entry]) => {
      const button = (act, word) =>
        `<button data-act="${act}" data-name="${escaped(name)}" aria-label="${word} ${escaped(name)}">${word}</button>`;
      return (
        `<li><span>${escaped(name)}</span><small>${kindOf(entry)}, ${escaped(String(entry.saved).slice(0, 10))}</small>` +
        `${button("open", "Open")}${button("rename", "Rename")}${button("delete", "Delete")}` +
        `${entry.what === "settings" ? button("link", "Copy link") : ""}</li>`
      );
    });
    return `<ul>${items.join("")}</ul>`;
  }

  const kept = () =>
    '<div class="kept"><p class="remark">Saved in this browser alone, until you delete it.</p>' +
    '<label>Name <input type="text" maxlength="80"></label>' +
    '<div class="row"><button data-act="text">Save text</button><button data-act="settings">Save settings</button></div>' +
    `<div class="list">${listed()}</div>` +
    '<div class="row"><button data-act="all">Export all</button>' +
    '<label class="file"><span>Import</span><input type="file" accept=".json" aria-label="Import a file of saved texts"></label></div>' +
    '<p class="remark">Take this text away, with its settings, seed and tokens:</p>' +
    '<div class="row"><button data-act="json">JSON</button><button data-act="markdown">Markdown</button>' +
    '<button data-act="picture">Picture</button></div></div>';

  function download(name, type, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const settingsOf = ({ settings, seed }) =>
    Object.entries({ ...settings, seed: seed ?? settings.seed })
      .filter(([, value]) => value !== "" && value !== null && value !== undefined)
      .map(([name, value]) => `${name} ${String(value).replaceAll("\n", ", ")}`)
      .join(", ");

  const shares = (tokens) => tokens.map(({ logprob }) => (logprob === null ? -1 : 100 * Math.exp(logprob)));

  function markdown(record) {
    const { model, text, prompt, rest = "", samples } = record;
    const parts = samples
      ? samples.map(({ text: made }) => `${prompt}**${made.trim().replaceAll("*", "\\*")}**`.replace(/(\S)\*\*/, "$1 **") + rest)
      : [text];
    return `# Text by BioGPT\n\n${parts.join("\n\n---\n\n")}\n\nModel ${model}; ${settingsOf(record)}.\n\nGenerated text is not medical advice and can be wrong.\n`;
  }

  // Words in lines, each token on its colour.
  function picture(record) {
    const { model, text, prompt, rest = "", samples } = record;
    const [size, line, width, edge] = [18, 30, 760, 24];
    const pen = document.createElement("canvas").getContext("2d");
    pen.font = `${size}px sans-serif`;
    const marks = [];
    let [x, y] = [edge, edge + line];
    const put = (piece, colour) => {
      for (const part of piece.split(/(?<=\n)|(?=\s)/)) {
        const long = pen.measureText(part).width;
        if (x + long > width - edge && x > edge) [x, y] = [edge, y + line];
        const word = x === edge ? part.trimStart() : part;
        const wide = pen.measureText(word).width;
        if (colour && word) marks.push(`<rect x="${x}" y="${y - 20}" width="${wide}" height="26" fill="${colour}"/>`);
        marks.push(`<text x="${x}" y="${y}" xml:space="preserve">${escaped(word)}</text>`);
        x += wide;
        if (part.endsWith("\n")) [x, y] = [edge, y + line];
      }
    };
    const colourOf = (share) => (share < 0 ? "" : COLOURS[[50, 20, 5, 0].findIndex((least) => share >= least)]);
    for (const [number, sample] of (samples ?? [null]).entries()) {
      if (number) [x, y] = [edge, y + 2 * line];
      put(sample ? prompt : text, "");
      if (sample) {
        const percents = shares(sample.tokens);
        sample.tokens.forEach((token, place) => put(token.text, colourOf(percents[place])));
        const end = sample.tokens.at(-1)?.end ?? 0;
        put(sample.text.slice(end) + rest, "");
      }
    }
    const foot = `BioGPT, ${model}; ${settingsOf(record)}`;
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${y + 64}" font-family="sans-serif" font-size="${size}">` +
      `<rect width="100%" height="100%" fill="#fff"/>${marks.join("")}` +
      `<text x="${edge}" y="${y + 44}" font-size="12" fill="#555">${escaped(foot.slice(0, 110))}</text></svg>`
    );
  }

  const tellAs = (line, words) => line.replace("</p>", `${escaped(words)}</p>`);

  // What the server has made of the screen is saved or taken away; the status line says so.
  function keep(done, failed, given) {
    const { what, name, record } = JSON.parse(given);
    const entry = { what, saved: new Date().toISOString(), record };
    if (what === "json") download("biogpt-text.json", "application/json", JSON.stringify({ ...record, saved: entry.saved }, null, 1));
    else if (what === "markdown") download("biogpt-text.md", "text/markdown", markdown(record));
    else if (what === "picture") download("biogpt-text.svg", "image/svg+xml", picture(record));
    else if (store({ ...all(), [name]: entry })) return tellAs(done, `saved as ${name}`);
    else return tellAs(failed, "the browser keeps no more: delete something, or export it first");
    return tellAs(done, "see your downloads");
  }

  async function imported(file) {
    const found = JSON.parse(await file.text());
    const entries = found?.format === "biogpt-kept-1" ? Object.entries(found.kept) : [];
    const fit = entries.filter(([name, entry]) => name.length <= 80 && entry?.record?.format === "biogpt-text-1");
    if (!fit.length || fit.length > MOST) throw new Error("no file of saved texts");
    if (!store({ ...all(), ...Object.fromEntries(fit) })) throw new Error("the browser keeps no more");
    return fit.length;
  }

  function linkOf({ record }) {
    const query = new URLSearchParams({ tab: "write" });
    for (const [name, value] of Object.entries(record.settings)) if (value !== "" && value !== null) query.set(name, value);
    return `${location.origin}${location.pathname}?${query}`;
  }

  function listenToKept(element, trigger) {
    redraw = () => {
      element.querySelector(".list").innerHTML = listed();
    };
    addEventListener("storage", redraw); // saved in another tab
    const box = () => element.querySelector("input[type=text]");
    const say = (words) => {
      const line = document.querySelector("#kept-status .status");
      if (line) line.innerHTML = `<b>${escaped(words)}</b>`;
    };
    const busy = () => document.querySelector("#generate").disabled;
    const entries = {
      open: (name, entry) => trigger("select", { what: entry.what, record: entry.record }),
      rename(name, entry) {
        const other = prompt(`Another name for “${name}”`, name)?.trim().slice(0, 80);
        if (!other || other === name) return;
        const rest = { ...all() };
        if (other in rest) {
          say("That name is taken");
          return;
        }
        delete rest[name];
        store({ ...rest, [other]: entry });
      },
      delete(name) {
        const rest = { ...all() };
        delete rest[name];
        store(rest);
        say(`Deleted ${name}`);
      },
      async link(name, entry) {
        const link = linkOf(entry);
        try {
          await navigator.clipboard.writeText(link);
          say("The link is copied");
        } catch {
          say(link); // for browsers that let no page copy
        }
      },
    };
    element.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button || busy()) return;
      const { act, name } = button.dataset;
      if (name !== undefined) entries[act](name, all()[name]);
      else if (act === "all") download("biogpt-saved.json", "application/json", JSON.stringify({ format: "biogpt-kept-1", kept: all() }));
      else {
        const typed = box().value.trim();
        if (!typed && (act === "text" || act === "settings")) {
          say("Type a name first");
          box().focus();
        } else trigger("submit", { what: act, name: typed });
      }
    });
    element.addEventListener("change", async ({ target }) => {
      if (target.type !== "file" || !target.files.length) return;
      try {
        say(`Imported: ${await imported(target.files[0])}`);
      } catch {
        say("Not imported: it is no file of saved texts, or the browser keeps no more");
      }
      target.value = "";
    });
  }

  Object.assign(window.biogpt, { keep, kept, listenToKept });
}
