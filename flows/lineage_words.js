// What a lineage page calls things, and elements that hold text. No state but a canvas that measures text.
const lineageWords = (() => {
  const NAMES = { model: "outside model", solver: "solver", problem: "problem", attempt: "attempt", parent: "parent", label: "label", labels: "set of labels", student: "student", step_labels: "step labels", reward_model: "reward model", evaluations: "evaluations" };
  const ROLES = { made: ["made by", "made"], judged: ["judged by", "judged"], learned: ["learned from", "taught"], began: ["began from", "began"], measured: ["measures", "measured by"], posed: ["posed by", "tried by"], parent: ["made of", "became"] };
  const short = (digest) => (digest || "").slice(0, 10);
  const clip = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
  const ruler = document.createElement("canvas").getContext("2d");
  /** Text clipped to so many pixels. */
  function fitted(text, wide, font) {
    ruler.font = `${font} system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif`;
    if (ruler.measureText(text).width <= wide) return text;
    let length = text.length;
    while (length > 1 && ruler.measureText(`${text.slice(0, length)}…`).width > wide) length -= 1;
    return `${text.slice(0, length)}…`;
  }
  const flat = (value) => (typeof value === "string" ? value : JSON.stringify(value)).replace(/\s+/g, " ").trim();
  const number = (value) => (Number.isInteger(value) && Math.abs(value) < 1e15 ? value.toLocaleString("en") : value.toLocaleString("en", { maximumSignificantDigits: 4 }));
  const nounOf = (node) => ({ model: "model", labels: "labels", step_labels: "step labels", reward_model: "reward model" })[node.kind] || node.kind;
  const nameOf = (node) => (["label", "attempt", "problem", "parent", "model"].includes(node.kind) ? `${nounOf(node)} ${short(node.digest)}` : nounOf(node));
  const titleOf = (node) => (node.generation === null ? nameOf(node) : `gen/${node.generation} ${nameOf(node)}`);
  const sum = (list) => list.reduce((total, entry) => total + entry.rows, 0);
  const factOf = (node) => {
    if (node.kind === "labels" || node.kind === "step_labels") return `${number(node.rows)} rows`;
    if (node.kind === "label" || node.kind === "attempt") return typeof node.reward === "number" ? `reward ${number(node.reward)} · ${node.reward_source}` : (node.roles || []).join(", ");
    if (node.kind === "problem") return node.payload === undefined ? "" : flat(node.payload);
    if (node.learned) return `learned ${number(node.learned_rows)}`;
    if (node.kind === "evaluations") {
      const greedy = ((node.metrics || {}).test || {}).greedy;
      return greedy ? `greedy ${number(100 * greedy.value)} % on test` : short(node.digest);
    }
    return node.source || short(node.digest);
  };
  /** A move of a board game by the name of its cell, such as c5: column, then row. */
  function cellOf(move, position) {
    const size = position.split("/").length;
    return move < size * size ? `${String.fromCharCode(97 + (move % size))}${Math.floor(move / size) + 1}` : "swap";
  }
  const SVG = "http://www.w3.org/2000/svg";
  function make(tag, attributes = {}, text = "", inside = []) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text) element.textContent = text;
    element.append(...inside);
    return element;
  }
  function html(tag, attributes = {}, ...inside) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inside.filter((part) => part !== null));
    return element;
  }
  return { NAMES, ROLES, short, clip, fitted, flat, number, sum, nameOf, titleOf, factOf, cellOf, make, html };
})();
