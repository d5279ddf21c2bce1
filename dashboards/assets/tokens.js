// Draws one rollout token by token. Whatever a model wrote is put in as text, never as markup.
window.dash_clientside = window.dash_clientside || {};
window.dash_clientside.collapsewatch = (function () {
  "use strict";

  const COLOURS = { logp: "230 159 0", entropy: "86 180 233", gap: "204 121 167", p: "213 94 0" };
  const MOST = 0.62; // of a colour: more would hide the text
  const SCALES = {
    logp: "uncoloured: certain; full colour: log-probability -5 or less",
    entropy: "uncoloured: certain; full colour: 2 nats or more",
    gap: "uncoloured: equal; full colour: 1 or more apart",
    p: "uncoloured: 0.0001 or less; full colour: 1",
  };
  let shown = null; // the data that is drawn, and its tokens' elements
  let chosen = -1;

  function kind(mode) { return mode[0] === "p" ? "p" : mode; }

  function strength(mode, value) {
    if (value === null || value === undefined) return 0;
    if (mode === "logp") return Math.min(1, -value / 5);
    if (mode === "entropy") return Math.min(1, value / 2);
    if (mode === "gap") return Math.min(1, Math.abs(value));
    return value <= 0 ? 0 : Math.max(0, Math.min(1, 1 + Math.log10(value) / 4));
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function visible(piece) {
    const shown = piece.replace(/\r/g, "␍").replace(/\n/g, "↵\n").replace(/\t/g, "→\t");
    return shown.replace(/[\u0000-\u0008\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, "�"); // they would hide
  }

  function fold(className, label, open) {
    const box = make("details", className);
    box.open = open;
    box.append(make("summary", "", label));
    return box;
  }

  function excerpt(data, from, to) {
    const text = data.pieces.slice(from, to).join("").replace(/\s+/g, " ").trim();
    return text.length > 60 ? text.slice(0, 59) + "…" : text;
  }

  function end(data, from, inside) {
    let to = from;
    while (to < data.pieces.length && inside(to)) to += 1;
    return to;
  }

  function draw(data, view) {
    const tokens = [];
    const add = (box, i) => {
      const token = make("span", `cw-token cw-slot-${data.slot[i] || "none"}`, visible(data.pieces[i]));
      token.tabIndex = -1;
      token.dataset.index = i;
      tokens[i] = token;
      box.append(token);
    };
    view.replaceChildren();
    for (let i = 0; i < data.pieces.length; ) {
      const turn = data.turn[i], last = end(data, i, (j) => data.turn[j] === turn);
      if (turn < 0) {
        const box = fold("cw-fold cw-env", `the environment: ${excerpt(data, i, last)}`, false);
        for (; i < last; i += 1) add(box, i);
        view.append(box);
        continue;
      }
      const [structure, reason] = data.turns[turn] || ["", ""];
      const sound = data.sound.includes(structure);
      const box = make("div", `cw-turn cw-turn-${structure}`);
      const why = sound || !reason ? structure : `${structure}: ${reason.replaceAll("_", " ")}`;
      box.append(make("div", "cw-turn-head", `turn ${turn + 1} · ${why}`));
      while (i < last) {
        const inCall = (j) => j < last && (data.slot[j] === "open" || data.slot[j] === "body");
        const stop = end(data, i, inCall);
        if (stop === i) { add(box, i); i += 1; continue; }
        const closes = data.names.includes(data.pieces[stop - 1]) ? 1 : 0; // the closing marker stays in sight
        const call = fold("cw-fold cw-call", `call ${excerpt(data, i, stop - closes)}`, !sound);
        for (; i < stop - closes; i += 1) add(call, i);
        box.append(call);
        for (; i < stop; i += 1) add(box, i);
      }
      view.append(box);
    }
    return tokens;
  }

  function colour(mode) {
    const values = shown.data.values[mode] || [], rgb = COLOURS[kind(mode)];
    shown.tokens.forEach((token, i) => {
      const s = shown.data.turn[i] < 0 ? 0 : strength(kind(mode), values[i]);
      token.style.backgroundColor = s > 0 ? `rgb(${rgb} / ${(MOST * s).toFixed(3)})` : "";
    });
    return SCALES[kind(mode)];
  }

  function number(value) { return value === null || value === undefined ? "unknown" : String(+value.toPrecision(3)); }

  function tell(i) {
    const data = shown.data, box = document.getElementById("token-facts");
    const rows = [
      ["token", `${i}: ${JSON.stringify(data.pieces[i])}`],
      ["written by", data.turn[i] < 0 ? "the environment" : `the model, turn ${data.turn[i] + 1}`],
    ];
    if (data.turn[i] >= 0) {
      rows.push(["slot", data.slot[i]], ["log-probability", number(data.values.logp[i])]);
      rows.push(["entropy", number(data.values.entropy[i])], ["trained less sampled", number(data.values.gap[i])]);
      data.names.forEach((name, k) => rows.push([`p(${name})`, number(data.values[`p${k}`][i])]));
    }
    const list = make("dl", "");
    rows.forEach(([name, value]) => list.append(make("dt", "", name), make("dd", "", value)));
    box.replaceChildren(list);
  }

  function choose(i, focus) {
    const token = shown && shown.tokens[i];
    if (!token) return;
    if (shown.tokens[chosen]) { shown.tokens[chosen].tabIndex = -1; shown.tokens[chosen].classList.remove("cw-chosen"); }
    chosen = i;
    token.tabIndex = 0;
    token.classList.add("cw-chosen");
    for (let box = token.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    if (focus) token.focus();
    tell(i);
    history.replaceState(history.state, "", `#t=${i}`);
  }

  document.addEventListener("click", (event) => {
    const token = event.target.closest(".cw-token");
    if (token) choose(Number(token.dataset.index), true);
  });
  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !event.target.classList.contains("cw-token")) return;
    event.preventDefault();
    choose(chosen + step, true);
  });

  return {
    tokens(data, mode) {
      const view = document.getElementById("token-view");
      if (!data || !view) return window.dash_clientside.no_update;
      if (!shown || shown.data !== data || !view.hasChildNodes()) {
        chosen = -1;
        shown = { data, tokens: draw(data, view) };
        if (shown.tokens[0]) shown.tokens[0].tabIndex = 0;
        const asked = /^#t=(\d+)$/.exec(location.hash);
        if (asked) choose(Number(asked[1]), true);
      }
      return colour(mode || "logp");
    },
    beat() { return false; }, // ticks are not disabled any more
    again() { // the run has grown: the table asks for its rows again and stays where it is
      const grid = document.getElementById("rollout-grid");
      const api = grid && window.dash_ag_grid && window.dash_ag_grid.getApi("rollout-grid");
      if (api) api.refreshInfiniteCache();
      return Date.now();
    },
  };
})();
