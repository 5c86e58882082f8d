// COCO run-length masks: read, resampled, written again, and traced to outlines. No page is needed here.

/** Lengths of a mask's runs, column by column, background first; `counts` may be COCO's text or a list. */
export function runsOf({ counts }) {
  if (Array.isArray(counts)) return counts;
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      const bits = counts.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
      more = (bits & 32) !== 0;
      if (!more && bits & 16) value |= -1 << shift;
    }
    // From the fourth on, a run is written as its difference to the one two places before.
    runs.push(runs.length > 2 ? value + runs.at(-2) : value);
  }
  return runs;
}

/** A mask's pixels at another size: one byte each, column by column; a pixel takes what lies under its centre. */
export function resample(rle, width, height) {
  const [fullHeight, fullWidth] = rle.size;
  const runs = runsOf(rle);
  const pixels = new Uint8Array(width * height);
  let run = 0;
  let end = runs[0] ?? 0;
  for (let x = 0; x < width; x++) {
    const column = Math.floor(((x + 0.5) * fullWidth) / width) * fullHeight;
    for (let y = 0; y < height; y++) {
      const place = column + Math.floor(((y + 0.5) * fullHeight) / height);
      while (place >= end && run < runs.length - 1) end += runs[++run];
      pixels[x * height + y] = run % 2;
    }
  }
  return pixels;
}

/** Pixels, column by column, as a COCO mask with compressed counts. */
export function encode(pixels, width, height) {
  const runs = [];
  let before = 0;
  let length = 0;
  for (const pixel of pixels) {
    if (pixel !== before) {
      runs.push(length);
      length = 0;
      before = pixel;
    }
    length++;
  }
  runs.push(length);
  let counts = "";
  runs.forEach((run, place) => {
    let value = place > 2 ? run - runs[place - 2] : run;
    let more = true;
    while (more) {
      let bits = value & 31;
      value >>= 5;
      more = bits & 16 ? value !== -1 : value !== 0;
      if (more) bits |= 32;
      counts += String.fromCharCode(bits + 48);
    }
  });
  return { size: [height, width], counts };
}

/** Pixels of the object. */
export const areaOf = (rle) => runsOf(rle).reduce((sum, run, place) => (place % 2 ? sum + run : sum), 0);

/** The same mask for a picture of another size. */
export function resized(rle, width, height) {
  const same = rle.size[0] === height && rle.size[1] === width;
  return same ? rle : encode(resample(rle, width, height), width, height);
}

/**
 * Outlines of a mask as SVG path data, and the size of the frame that its coordinates are in.
 * Large masks are traced at `most` pixels a side: a screen shows no more.
 */
export function outlineOf(rle, most = 1024) {
  const scale = Math.min(1, most / Math.max(...rle.size));
  const height = Math.max(1, Math.round(rle.size[0] * scale));
  const width = Math.max(1, Math.round(rle.size[1] * scale));
  const loops = trace(resample(rle, width, height), width, height);
  return { path: loops.map(smooth).join(""), width, height };
}

/** Closed loops of points in the middle of each pixel edge between inside and outside. */
function trace(pixels, width, height) {
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && pixels[x * height + y] === 1;
  const row = width + 1;
  // From a pixel corner to the next along an edge; where two pixels touch at a corner only, two edges leave it.
  const [next, second] = [new Map(), new Map()];
  const edge = (x0, y0, x1, y1) => {
    const from = y0 * row + x0;
    (next.has(from) ? second : next).set(from, y1 * row + x1);
  };
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if (pixels[x * height + y] !== 1) continue;
      if (!inside(x, y - 1)) edge(x, y, x + 1, y);
      if (!inside(x + 1, y)) edge(x + 1, y, x + 1, y + 1);
      if (!inside(x, y + 1)) edge(x + 1, y + 1, x, y + 1);
      if (!inside(x - 1, y)) edge(x, y + 1, x, y);
    }
  }
  const take = (from) => {
    const edges = second.has(from) ? second : next;
    const to = edges.get(from);
    edges.delete(from);
    return to;
  };
  const loops = [];
  for (const start of [...next.keys()]) {
    while (next.has(start)) {
      const points = [];
      let at = start;
      do {
        const to = take(at);
        points.push([((at % row) + (to % row)) / 2, (Math.floor(at / row) + Math.floor(to / row)) / 2]);
        at = to;
      } while (at !== start);
      loops.push(points);
    }
  }
  return loops;
}

/** A loop as path data: curves that leave the stairs of the pixels out and stay within half a pixel of them. */
function smooth(loop) {
  const at = (place) => loop[(place + loop.length) % loop.length];
  const straight = (place) => {
    const [[x0, y0], [x1, y1], [x2, y2]] = [at(place - 1), at(place), at(place + 1)];
    return x1 - x0 === x2 - x1 && y1 - y0 === y2 - y1;
  };
  const points = loop.filter((_, place) => !(straight(place - 1) && straight(place) && straight(place + 1)));
  const middle = ([x0, y0], [x1, y1]) => `${(x0 + x1) / 2} ${(y0 + y1) / 2}`;
  const curves = points.map((point, place) => `Q${point.join(" ")} ${middle(point, points[(place + 1) % points.length])}`);
  return `M${middle(points.at(-1), points[0])}${curves.join("")}Z`;
}
