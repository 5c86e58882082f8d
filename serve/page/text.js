// The answer's text in segments: words that name objects, pieces where their patches stood, and the rest.

/**
 * Segments of an answer, in order: `{key, text}`, with `numbers` where it stands for objects, and `piece` where the
 * patches of one stood ("alone": nothing in the text names it).
 * @param answer `letters` are the text's code points; each object has `at`, its place among them.
 */
export function segmentsOf({ letters, objects }) {
  const small = letters.map((letter) => letter.toLowerCase());
  const marks = [];
  objects.forEach((found, number) => {
    const label = [...found.label.toLowerCase()];
    const from = label.length ? lastPlace(small, label, found.at) : -1;
    const to = from + label.length;
    const same = marks.find((mark) => mark.from === from && mark.to === to);
    const free = from >= 0 && !marks.some((mark) => !mark.piece && from < mark.to && mark.from < to);
    if (same) same.numbers.push(number);
    else if (free) marks.push({ from, to, numbers: [number] });
    marks.push({ from: found.at, to: found.at, numbers: [number], piece: same || free ? "named" : "alone" });
  });
  marks.sort((a, b) => a.from - b.from || a.to - b.to || a.numbers[0] - b.numbers[0]);
  const segments = [];
  let at = 0;
  const plain = (to) => {
    if (to > at) segments.push({ key: `text ${at}`, text: letters.slice(at, to).join("") });
    at = Math.max(at, to);
  };
  for (const { from, to, numbers, piece } of marks) {
    plain(Math.min(from, letters.length));
    const key = `${piece ?? "words"} ${from} ${numbers}`;
    segments.push({ key, text: piece ? "" : letters.slice(from, to).join(""), numbers, piece });
    at = Math.max(at, Math.min(to, letters.length));
  }
  plain(letters.length);
  return segments;
}

/** Where `label` last stands before `end`; -1 for nowhere. */
function lastPlace(letters, label, end) {
  for (let from = Math.min(end, letters.length) - label.length; from >= 0; from--) {
    if (label.every((letter, place) => letters[from + place] === letter)) return from;
  }
  return -1;
}

/** Make an element's children those wanted (`{key, text, create}`), leaving alone what stays as it is. */
export function patch(parent, wanted) {
  let place = 0;
  for (; place < wanted.length; place++) {
    const node = parent.childNodes[place];
    const { key, text } = wanted[place];
    if (!node || node.key !== key) break;
    if (text && node.textContent !== text) node.textContent = text;
  }
  while (parent.childNodes.length > place) parent.lastChild.remove();
  for (const { key, create } of wanted.slice(place)) parent.append(Object.assign(create(), { key }));
}
