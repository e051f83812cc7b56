// The graph of a lineage page. Data come from the element `data` and go into the page as text only.
(() => {
  const { NAMES, ROLES, short, clip, fitted, flat, number, sum, nameOf, titleOf, factOf, cellOf, make, html } = lineageWords;
  const data = JSON.parse(document.getElementById("data").textContent);
  const nodes = new Map(data.nodes.map((node) => [node.address, node]));
  const edges = data.edges.map(([from, to], index) => ({ from, to, role: data.roles[index] }));
  const causes = new Map(), effects = new Map(), rows = new Map();
  for (const name of nodes.keys()) { causes.set(name, []); effects.set(name, []); }
  for (const edge of edges) { causes.get(edge.to).push(edge); effects.get(edge.from).push(edge); }
  for (const node of nodes.values()) {
    for (const row of node.examples || []) {
      if (!nodes.has(row.address)) rows.set(row.address, { ...row, kind: "label", digest: row.label_id, set: node.address, generation: node.generation });
    }
  }
  const NEAR = 5, MOST = 12;
  const svg = document.getElementById("graph"), stage = document.getElementById("stage"), panel = document.getElementById("panel");

  let shown = new Set(), hits = new Set(), chosen = data.roots[0], overview = false, plan;
  let view = { x: 0, y: 0, scale: 1 }, depth = history.state?.depth ?? 0;

  // ---- which nodes are shown
  const distance = (from) => (edge, other) => Math.abs((nodes.get(other(edge)).generation ?? -1) - (from.generation ?? -1));
  function neighbours(name, list, other) {
    const far = distance(nodes.get(name));
    return [...list.get(name)].sort((a, b) => far(a, other) - far(b, other)).map(other);
  }
  const causesOf = (name) => neighbours(name, causes, (edge) => edge.from);
  const effectsOf = (name) => neighbours(name, effects, (edge) => edge.to);
  function near() {
    shown = new Set(data.roots);
    let edge = [...shown];
    for (let step = 0; step < 4 && shown.size < 30; step += 1) {
      const next = edge.flatMap((name) => [...causesOf(name).slice(0, NEAR), ...effectsOf(name).slice(0, NEAR)]).filter((name) => !shown.has(name));
      next.slice(0, 30 - shown.size).forEach((name) => shown.add(name));
      edge = next;
    }
  }
  /** Show a node, and the shortest way to it from what is shown. */
  function reveal(name) {
    if (shown.has(name)) return;
    const from = new Map([...shown].map((start) => [start, null])), waiting = [...shown];
    for (let place = waiting.shift(); place !== undefined && !from.has(name); place = waiting.shift()) {
      for (const next of [...causesOf(place), ...effectsOf(place)]) {
        if (!from.has(next)) { from.set(next, place); waiting.push(next); }
      }
    }
    for (let place = name; place; place = from.get(place)) shown.add(place);
  }
  /** Open more of a node's causes or effects, nearest generations first; once all are open, close them. */
  function toggle(name, list) {
    const before = plan.places.get(name);
    const others = list(name), hidden = others.filter((other) => !shown.has(other));
    if (hidden.length) hidden.slice(0, MOST).forEach((other) => shown.add(other));
    else {
      const kept = new Set([name, ...data.roots]);
      others.forEach((other) => { if (!kept.has(other)) shown.delete(other); });
      const linked = new Set(kept), waiting = [...kept];
      for (let place = waiting.shift(); place !== undefined; place = waiting.shift()) {
        for (const next of [...causesOf(place), ...effectsOf(place)]) {
          if (shown.has(next) && !linked.has(next)) { linked.add(next); waiting.push(next); }
        }
      }
      shown = linked;
    }
    draw();
    // The columns may have moved; the node stays under the pointer.
    const now = plan.places.get(name);
    view = { ...view, x: view.x + (before.x - now.x) * view.scale, y: view.y + (before.y - now.y) * view.scale };
    turn();
  }

  // ---- drawing
  function opener(name, list, x, y, what) {
    const others = list(name), hidden = others.filter((other) => !shown.has(other)).length;
    if (!others.length) return [];
    const text = hidden ? `+${hidden}` : "−", width = 12 + 7 * text.length;
    const button = make("g", { class: `open ${hidden ? "" : "close"}`, role: "button", tabindex: "0", "data-open": what, "aria-label": hidden ? `show ${Math.min(hidden, MOST)} more ${what}` : `hide ${what}` }, "", [
      make("rect", { x: x - width / 2, y: y - 9, width, height: 18, rx: 9 }),
      make("text", { x, y: y + 4 }, text),
    ]);
    const act = (event) => { event.stopPropagation(); event.preventDefault(); toggle(name, list); };
    button.addEventListener("click", act);
    button.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") act(event); });
    return [button];
  }
  function draw() {
    plan = lineageLayout.lay([...shown].map((name) => nodes.get(name)), overview);
    const linked = new Set([chosen]), layer = make("g", { id: "layer", class: overview ? "overview" : "" });
    for (const edge of edges) { if (edge.from === chosen) linked.add(edge.to); if (edge.to === chosen) linked.add(edge.from); }
    for (const band of plan.bands) {
      const status = [...nodes.values()].find((node) => node.generation === band.generation)?.status;
      const note = { abandoned: "  rolled back", current: "  current" }[status] || "";
      const name = overview ? (band.generation < 0 ? "" : String(band.generation)) : band.generation < 0 ? "from outside" : `gen/${band.generation}${note}`;
      const edge = overview ? 5 : 20, middle = (band.left + band.right) / 2;
      layer.append(make("rect", { class: `band ${status}`, x: band.left - edge, y: 0, width: band.right - band.left + 2 * edge, height: plan.bottom + 22, rx: 10 }));
      layer.append(make("text", { class: "generation", x: overview ? middle : band.left - 4, y: overview ? 36 : 24 }, name));
    }
    for (const edge of edges) {
      if (!shown.has(edge.from) || !shown.has(edge.to)) continue;
      const mine = edge.from === chosen || edge.to === chosen;
      layer.append(make("path", { class: `edge ${edge.role} r-${edge.role} ${mine ? "near" : "away"}`, d: lineageLayout.line(plan, edge) }));
    }
    for (const name of plan.places.keys()) layer.append(drawn(name, linked));
    svg.replaceChildren(layer);
    turn();
    document.getElementById("count").textContent = `${shown.size.toLocaleString("en")} of ${nodes.size.toLocaleString("en")} nodes`;
  }
  function drawn(name, linked) {
    const node = nodes.get(name), { x, y } = plan.places.get(name), { wide, high } = plan.size, more = [];
    if (data.roots.includes(name)) more.push("root");
    if (node.status === "abandoned") more.push("abandoned");
    if (node.excluded) more.push("excluded");
    if (hits.has(name)) more.push("hit");
    if (name === chosen) more.push("chosen");
    else if (!linked.has(name) && !hits.has(name)) more.push("away");
    const inside = overview ? [] : [
      make("rect", { class: "bar", x, y, width: 6, height: high, rx: 3 }),
      make("text", { class: "name", x: x + 15, y: y + 19 }, fitted(nameOf(node), wide - 22, "600 12px")),
      make("text", { class: "fact", x: x + 15, y: y + 36 }, fitted(clip(factOf(node), 60), wide - 22, "11px")),
      ...opener(name, causesOf, x, y + high, "causes"),
      ...opener(name, effectsOf, x + wide, y + high, "effects"),
    ];
    const box = make("g", { class: `node k-${node.kind} ${more.join(" ")}`, tabindex: "0", role: "button", "data-address": name, "aria-label": `${titleOf(node)}, ${factOf(node)}` }, "", [
      make("title", {}, `${titleOf(node)}: ${factOf(node)}\n${name}`),
      make("rect", { class: "box", x, y, width: wide, height: high, rx: overview ? 5 : 8 }),
      ...inside,
    ]);
    box.addEventListener("click", () => go(name));
    box.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); go(name); }
    });
    return box;
  }
  function turn() {
    svg.firstChild?.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.scale})`);
  }
  function zoom(factor, x = svg.clientWidth / 2, y = svg.clientHeight / 2) {
    if (overview && factor > 1 && view.scale > 1) return close();
    const scale = Math.min(2.5, Math.max(0.05, view.scale * factor));
    view = { x: x - ((x - view.x) * scale) / view.scale, y: y - ((y - view.y) * scale) / view.scale, scale };
    return turn();
  }
  /** From the overview to nodes that can be read, at the one that is chosen. */
  function close() {
    overview = false;
    draw();
    view.scale = 0.75;
    center(chosen);
  }
  /** All that is shown, in one view; nodes without words where there are many columns. */
  function whole() {
    overview = plan.bands.length > 10;
    draw();
    fit();
  }
  /** Where the picture starts along an axis: in the middle where it has room, else at `wanted`, without a margin. */
  function held(wanted, long, room) {
    return long < room ? (room - long) / 2 : Math.min(30, Math.max(room - long - 30, wanted));
  }
  function place(scale, x, y) {
    view = { scale, x: held(x, plan.right * scale, svg.clientWidth), y: held(y, (plan.bottom + 22) * scale, svg.clientHeight) };
    turn();
  }
  function fit() {
    place(Math.min(1, (svg.clientWidth - 60) / plan.right, (svg.clientHeight - 40) / (plan.bottom + 22)), 0, 0);
  }
  function center(name) {
    const at = plan.places.get(name);
    if (!at) return;
    const scale = overview ? view.scale : Math.max(view.scale, 0.75), { wide, high } = plan.size;
    place(scale, svg.clientWidth / 2 - (at.x + wide / 2) * scale, svg.clientHeight / 2 - (at.y + high / 2) * scale);
  }
  function visible(name) {
    const at = plan.places.get(name), x = at.x * view.scale + view.x, y = at.y * view.scale + view.y;
    const inside = x > 0 && y > 0 && x + plan.size.wide * view.scale < svg.clientWidth && y + plan.size.high * view.scale < svg.clientHeight;
    return inside && (overview || view.scale > 0.45);
  }

  // ---- going from one to another; the address of the page says where one is, so that back works
  function go(name) {
    if (here() !== name) {
      depth += 1;
      history.pushState({ depth }, "", `#${encodeURIComponent(name)}`);
    }
    show(name);
  }
  function here() {
    try { return decodeURIComponent(location.hash.slice(1)) || data.roots[0]; } catch { return data.roots[0]; }
  }
  function show(name) {
    const row = rows.get(name), place = row ? row.set : nodes.has(name) ? name : data.roots[0];
    chosen = place;
    reveal(place);
    draw();
    if (!visible(place)) center(place);
    detail(row || nodes.get(place));
  }
  window.addEventListener("popstate", () => { depth = history.state?.depth ?? 0; show(here()); });

  // ---- the panel
  function link(name, text, note = "") {
    const button = html("button", { class: "panel-link", type: "button", "data-to": name, title: name }, html("span", {}, text), html("small", {}, note));
    button.addEventListener("click", () => go(name));
    return button;
  }
  const listed = (items) => html("ul", {}, ...items.map((item) => html("li", {}, item)));
  function folded(title, items) {
    if (items.length <= 8) return [html("h3", {}, title), listed(items)];
    return [html("h3", {}, title), listed(items.slice(0, 6)), html("details", {}, html("summary", {}, `${items.length - 6} more`), listed(items.slice(6)))];
  }
  const byDigest = (digest) => [...nodes.values()].find((node) => node.digest === digest && node.kind !== "label");
  const TEXTS = ["prompt", "completion", "output", "reference", "payload", "search_params"];
  const HIDDEN = new Set([...TEXTS, "address", "kind", "digest", "generation", "examples", "learned", "learned_by", "made_by", "judged_by", "steps", "step_rewards", "parents", "metrics", "target", "searched", "set", "status", "promoted", "verified", "elsewhere", "excluded", "label_id"]);
  function value(key, given) {
    if (given === null || given === undefined) return "–";
    if (typeof given === "boolean") return given ? "yes" : "no";
    if (typeof given === "number") return number(given);
    if (Array.isArray(given)) return given.join(", ");
    const node = /^[0-9a-f]{32}$/.test(given) ? byDigest(given) || nodes.get(`gen/${nodes.get(chosen).generation}/problems#${given}`) : undefined;
    if (node && node.address !== chosen) return link(node.address, titleOf(node));
    return typeof given === "string" ? given : JSON.stringify(given);
  }
  function board(position) {
    return html("pre", {}, position.board.split("/").map((row, index) => " ".repeat(index) + [...row].join(" ")).join("\n"));
  }
  function detail(node) {
    const back = html("button", { type: "button", id: "back" }, "← Back");
    back.disabled = depth === 0;
    back.addEventListener("click", () => history.back());
    const home = html("button", { type: "button", id: "home" }, "What was asked for");
    home.addEventListener("click", () => go(data.roots[0]));
    const chips = [html("span", { class: `chip k-${node.kind}` }, NAMES[node.kind])];
    if (node.status) chips.push(html("span", { class: "chip" }, node.status === "abandoned" ? "rolled back" : node.status));
    if (node.promoted === false) chips.push(html("span", { class: "chip" }, "not promoted"));
    if (node.verified === false) chips.push(html("span", { class: "chip" }, "not verified"));
    if (node.excluded) chips.push(html("span", { class: "chip alarm" }, `excluded: ${node.excluded}`));
    const parts = [html("nav", {}, back, home), html("div", {}, ...chips), html("h2", {}, titleOf(node)), html("code", {}, node.address)];
    if (node.elsewhere) parts.push(html("p", {}, node.elsewhere));
    const facts = html("dl");
    if (node.digest && !node.address.endsWith(node.digest)) facts.append(html("dt", {}, "digest"), html("dd", {}, html("code", {}, node.digest)));
    for (const [key, given] of Object.entries(node)) {
      if (!HIDDEN.has(key)) facts.append(html("dt", {}, key.replaceAll("_", " ")), html("dd", {}, value(key, given)));
    }
    parts.push(facts);
    if (node.set) parts.push(...folded("One of", [link(node.set, titleOf(nodes.get(node.set)), `${number(nodes.get(node.set).rows)} rows`)]));
    for (const key of TEXTS) {
      const given = node[key];
      if (given === undefined || given === null || (key === "output" && node.steps && node.steps.length)) continue;
      parts.push(html("h3", {}, key.replaceAll("_", " ")), html("pre", {}, typeof given === "string" ? given : JSON.stringify(given, null, 1)));
    }
    if (node.steps && node.steps.length) {
      parts.push(html("h3", {}, node.searched ? "Moves" : "Steps and their rewards"));
      if (node.searched) parts.push(html("p", {}, node.steps.join(" ")));
      else parts.push(html("ol", {}, ...node.steps.map((step, index) => {
        const reward = node.step_rewards[index];
        const told = html("span", {}, `step ${index + 1}${reward === undefined ? "" : `: ${number(reward)}`}`);
        if (reward !== undefined) told.append(html("meter", { min: 0, max: 1, value: reward }));
        return html("li", {}, told, html("pre", {}, step));
      })));
    }
    for (const [title, position] of [["What it teaches", node.target], ["The position as it was searched", node.searched?.position]]) {
      if (!position) continue;
      const told = html("dl");
      for (const [key, given] of Object.entries(position)) {
        if (!["board", "policy"].includes(key)) told.append(html("dt", {}, key), html("dd", {}, key === "move" ? cellOf(given, position.board) : value(key, given)));
      }
      const best = [...position.policy].map((share, move) => [share, move]).sort((a, b) => b[0] - a[0]).slice(0, 5);
      told.append(html("dt", {}, "policy, best five"), html("dd", {}, best.map(([share, move]) => `${cellOf(move, position.board)} ${number(share)}`).join(", ")));
      parts.push(html("h3", {}, title), board(position), told);
    }
    if (node.searched) parts.push(html("p", {}, `${number(node.searched.positions)} positions searched, ${number(node.searched.full)} in full, ${number(node.searched.simulations)} simulations`));
    for (const split of ["valid", "test"]) {
      const metrics = Object.entries((node.metrics || {})[split] || {}).filter(([, given]) => given && typeof given.value === "number");
      if (!metrics.length) continue;
      const told = html("dl");
      for (const [key, given] of metrics) told.append(html("dt", {}, key), html("dd", {}, `${number(given.value)}  (${number(given.low)} to ${number(given.high)})`));
      parts.push(html("h3", {}, `On ${split}`), told);
    }
    if (node.examples && node.examples.length) {
      parts.push(html("h3", {}, "Examples"), ...node.examples.map((row) => {
        const button = html("button", { class: "panel-link example", type: "button", "data-to": row.address }, html("span", {}, clip(flat(row.prompt), 90)), html("span", {}, `→ ${clip(flat(row.completion), 90)}`), html("small", {}, `${short(row.label_id)} · reward ${number(row.reward)}`));
        button.addEventListener("click", () => go(row.address));
        return button;
      }));
    }
    parts.push(...around(node));
    if (node.kind === "label") parts.push(html("h3", {}, "Its own lineage"), html("code", {}, `flywheel lineage ${node.address}`));
    panel.replaceChildren(...parts);
    panel.scrollTop = 0;
  }
  /** What leads to a node and what it leads to, by role. */
  function around(node) {
    if (node.set) {
      const makers = causes.get(node.set).filter((edge) => edge.role !== "learned").map((edge) => link(edge.from, titleOf(nodes.get(edge.from)), ROLES[edge.role][0]));
      const taught = (node.learned_by || []).filter((name) => nodes.has(name)).map((name) => link(name, titleOf(nodes.get(name)), "taught"));
      return [...(makers.length ? folded("Came from", makers) : []), ...(taught.length ? folded("Went into", taught) : [])];
    }
    const learned = (from, to) => (nodes.get(to).learned || []).find((entry) => entry.from === from)?.rows;
    const parts = [];
    for (const [list, other, side, title] of [[causes, "from", 0, "Came from"], [effects, "to", 1, "Went into"]]) {
      const found = [...list.get(node.address)].sort((a, b) => (nodes.get(b[other]).generation ?? -1) - (nodes.get(a[other]).generation ?? -1));
      if (!found.length) continue;
      const total = side === 0 && node.learned && node.learned.length ? `, ${number(sum(node.learned))} of ${number(node.learned_rows)} rows here` : "";
      parts.push(...folded(title + total, found.map((edge) => {
        const count = edge.role === "learned" ? learned(edge.from, edge.to) : undefined, told = ROLES[edge.role][side];
        const as = edge.role === "parent" && side === 0 ? (nodes.get(edge.from).roles || []).join(", ") : "";
        return link(edge[other], titleOf(nodes.get(edge[other])), count === undefined ? as || told : `${told} ${number(count)}`);
      })));
    }
    return parts;
  }

  // ---- search: a row among the examples of a set stands for the set in the picture
  lineageSearch([...nodes.values(), ...rows.values()], {
    found: (all) => { hits = new Set(all.map((node) => node.set || node.address)); draw(); },
    pick: (node) => { go(node.address); center(node.set || node.address); },
  });

  // ---- pan and zoom
  const fingers = new Map();
  let moved = 0;
  stage.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, [event.clientX, event.clientY]); moved = 0; });
  window.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY], edge = stage.getBoundingClientRect();
    const other = [...fingers].find(([id]) => id !== event.pointerId);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (other) {
      const spread = (point) => Math.hypot(point[0] - other[1][0], point[1] - other[1][1]);
      zoom(spread(now) / Math.max(1, spread(before)), other[1][0] - edge.left, other[1][1] - edge.top);
    } else {
      stage.classList.add("moving");
      view = { ...view, x: view.x + now[0] - before[0], y: view.y + now[1] - before[1] };
      turn();
    }
    fingers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    window.addEventListener(name, (event) => { fingers.delete(event.pointerId); stage.classList.remove("moving"); });
  }
  // A drag that ends on a node is no click.
  stage.addEventListener("click", (event) => { if (moved > 6) { event.stopPropagation(); event.preventDefault(); } }, true);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const edge = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - edge.left, event.clientY - edge.top);
  }, { passive: false });
  const press = (id, act) => document.getElementById(id).addEventListener("click", act);
  press("larger", () => zoom(1.3));
  press("smaller", () => zoom(1 / 1.3));
  press("fit", whole);
  press("all", () => { shown = new Set(nodes.keys()); draw(); whole(); });
  press("near", () => { overview = false; near(); reveal(chosen); draw(); fit(); if (!visible(chosen)) center(chosen); });
  window.addEventListener("resize", () => turn());

  // ---- begin
  const kinds = [...new Set([...nodes.values()].map((node) => node.kind))].sort((a, b) => Object.keys(NAMES).indexOf(a) - Object.keys(NAMES).indexOf(b));
  const roles = [...new Set(edges.map((edge) => edge.role))];
  document.getElementById("legend").append(
    ...kinds.map((kind) => html("span", { class: `k-${kind}` }, html("i"), NAMES[kind])),
    ...roles.map((role) => html("span", { class: `r-${role}` }, html("i", { class: `edge ${role}` }), { made: "made", judged: "judged", learned: "learned from", began: "began as", measured: "measured", posed: "posed", parent: "became" }[role])),
  );
  near();
  draw();
  fit();
  if (view.scale < 0.52) { view.scale = 0.75; center(data.roots[0]); }
  show(here());
})();
