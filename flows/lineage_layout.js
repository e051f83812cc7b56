"use strict";
// Where nodes and edges of a lineage page stand: a column a generation, in it a row a kind. Pure: no document, no state.
const lineageLayout = (() => {
  const LANES = { problem: 0, attempt: 1, parent: 1, label: 2, labels: 3, model: 4, solver: 4, student: 4, step_labels: 5, reward_model: 6, evaluations: 7 };
  const TRACKS = { made: 0, posed: 0, parent: 0, judged: 1, learned: 2, began: 3, measured: 3 };
  /** Sizes in pixels: of a node, between columns, between nodes of a row, between rows. */
  const NORMAL = { wide: 176, high: 46, across: 60, down: 14, lane: 50, top: 44 };
  const OVERVIEW = { wide: 24, high: 24, across: 14, down: 6, lane: 110, top: 60 };

  /** `shown`: nodes; -> places by address, a band a generation, the rows' tops, and the size of it all. */
  function lay(shown, overview) {
    const size = overview ? OVERVIEW : NORMAL, columns = new Map(), counts = new Map();
    for (const node of shown) {
      const generation = node.generation ?? -1, lane = LANES[node.kind];
      if (!columns.has(generation)) columns.set(generation, new Map());
      const column = columns.get(generation);
      column.set(lane, [...(column.get(lane) || []), node.address]);
      counts.set(lane, Math.max(counts.get(lane) || 0, column.get(lane).length));
    }
    const tops = new Map(), ends = new Map();
    let top = size.top;
    for (const lane of [...counts.keys()].sort((a, b) => a - b)) {
      tops.set(lane, top);
      top += counts.get(lane) * (size.high + size.down) - size.down;
      ends.set(lane, top);
      top += size.lane;
    }
    const places = new Map(), bands = [];
    [...columns.keys()].sort((a, b) => a - b).forEach((generation, column) => {
      const left = column * (size.wide + size.across);
      bands.push({ generation, left, right: left + size.wide });
      for (const [lane, names] of columns.get(generation)) {
        names.sort((a, b) => (a < b ? -1 : 1)).forEach((name, row) => {
          places.set(name, { x: left, y: tops.get(lane) + row * (size.high + size.down), lane, column });
        });
      }
    });
    const right = bands.length * (size.wide + size.across) - size.across;
    return { size, places, bands, tops, ends, right, bottom: top - size.lane, overview };
  }

  /** A line through points with round corners. */
  function rounded(points) {
    const toward = (from, to, far) => {
      const long = Math.hypot(to[0] - from[0], to[1] - from[1]) || 1;
      return [from[0] + ((to[0] - from[0]) * far) / long, from[1] + ((to[1] - from[1]) * far) / long];
    };
    let path = `M${points[0]}`;
    for (let index = 1; index < points.length - 1; index += 1) {
      const [before, at, after] = points.slice(index - 1, index + 2);
      const radius = Math.min(9, Math.hypot(at[0] - before[0], at[1] - before[1]) / 2, Math.hypot(after[0] - at[0], after[1] - at[1]) / 2);
      path += `L${toward(at, before, radius)}Q${at} ${toward(at, after, radius)}`;
    }
    return `${path}L${points[points.length - 1]}`;
  }

  /** The path of an edge. Long ones run along the free street between two rows, each role on a track of its own. */
  function line(plan, edge) {
    const { size } = plan, a = plan.places.get(edge.from), b = plan.places.get(edge.to), track = TRACKS[edge.role];
    const start = [a.x + size.wide, a.y + size.high / 2], end = [b.x, b.y + size.high / 2];
    if (a.column === b.column) {
      const x = a.x + size.wide / 2, between = [...plan.places.values()].some((at) => at.column === a.column && at.y > a.y && at.y < b.y);
      if (a.y < b.y && !between) return `M${x},${a.y + size.high}L${x},${b.y}`;
      const out = start[0] + 12 + track * 4;
      return rounded([start, [out, start[1]], [out, end[1]], [b.x + size.wide, end[1]]]);
    }
    if (plan.overview) {
      const x = a.x + size.wide / 2, to = b.x + size.wide / 2, y = a.y + size.high, half = (y + b.y) / 2;
      return a.lane < b.lane ? `M${x},${y}C${x},${half} ${to},${half} ${to},${b.y}` : `M${start}C${start[0] + size.across},${start[1]} ${end[0] - size.across},${end[1]} ${end}`;
    }
    if (b.column === a.column + 1) {
      const middle = (start[0] + end[0]) / 2;
      return `M${start}C${middle},${start[1]} ${middle},${end[1]} ${end}`;
    }
    const street = a.lane >= b.lane ? plan.ends.get(b.lane) : plan.tops.get(b.lane) - size.lane;
    const y = street + 12 + track * 10, out = start[0] + 12 + track * 5, into = end[0] - 32 + track * 5;
    return rounded([start, [out, start[1]], [out, y], [into, y], [into, end[1]], end]);
  }
  return { lay, line };
})();
