// The search field of a lineage page: `items` are nodes and rows; `tell.found` gets all that match, `tell.pick` the one.
function lineageSearch(items, tell) {
  const { clip, flat, titleOf, html } = lineageWords;
  const search = document.getElementById("search"), results = document.getElementById("results");
  const texts = items.map((node) => [node, Object.entries(node).filter(([key]) => key !== "examples" && key !== "learned").map(([, given]) => flat(given ?? "")).join("\n").toLowerCase()]);
  let found = [], at = 0;
  function look() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = words.length ? texts.filter(([, text]) => words.every((word) => text.includes(word))).map(([node]) => node) : [];
    const exact = (node) => Number(node.address.toLowerCase() === words[0] || node.digest.startsWith(words[0]));
    if (words.length) found.sort((a, b) => exact(b) - exact(a));
    at = 0;
    const lines = found.slice(0, 30).map((node, index) => {
      const item = html("li", { role: "option", id: `found-${index}`, "aria-selected": String(index === at), class: `k-${node.kind}` }, html("b", {}, titleOf(node)), html("small", {}, clip(flat(node.prompt ?? node.payload ?? node.source ?? node.address), 80)));
      item.addEventListener("pointerdown", (event) => { event.preventDefault(); pick(index); });
      return item;
    });
    if (words.length && !lines.length) lines.push(html("li", { class: "none" }, "Nothing in this graph says so."));
    if (found.length > 30) lines.push(html("li", { class: "none" }, `${found.length - 30} more; say more to narrow it down.`));
    results.replaceChildren(...lines);
    open(words.length > 0);
    tell.found(found);
  }
  function open(yes) {
    results.hidden = !yes;
    search.setAttribute("aria-expanded", String(yes));
  }
  function pick(index) {
    if (!found[index]) return;
    open(false);
    tell.pick(found[index]);
  }
  search.addEventListener("input", look);
  search.addEventListener("focus", () => { if (search.value) open(true); });
  search.addEventListener("blur", () => open(false));
  search.addEventListener("keydown", (event) => {
    const last = Math.min(found.length, 30) - 1;
    if (event.key === "Enter") pick(at);
    else if (event.key === "Escape") { search.value = ""; look(); search.blur(); }
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      at = Math.max(0, Math.min(last, at + (event.key === "ArrowDown" ? 1 : -1)));
      [...results.children].forEach((item, index) => item.setAttribute("aria-selected", String(index === at)));
      results.children[at]?.scrollIntoView({ block: "nearest" });
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== search) { event.preventDefault(); search.focus(); }
  });
}
