// The page: takes a picture and a question, shows the answer as it comes, and links its words to what they stand for.

import { ask, Problem } from "./answers.js";
import { drawPiece, colourOf, gridShape, inOrder, objectShape, originalBox, toCoco, toPng } from "./drawing.js";
import { fileOf, readPicture } from "./picture.js";
import { patch, segmentsOf } from "./text.js";

const TASKS = {
  detect: { field: "names", label: "What to find", hint: "Separate names by commas.", like: "person, dog, red cup" },
  refer: { field: "sentence", label: "Which one", hint: "Describe one thing.", like: "the cup to the left of the laptop" },
  caption: { hint: "Describes the picture and shows each thing it names." },
  chat: { field: "prompt", label: "Your words", hint: "Sent to the model as they are.", like: "What is on the table?" },
};
const KEY = "padt-key";
const FEW = 12;

const $ = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`);

/** All that changes. `answers` are about `picture`; `shown` is one of them; `pinned` objects stay lit. */
const state = { picture: null, answers: [], shown: null, pinned: [], running: null, opening: Promise.resolve() };

// --- The picture -----------------------------------------------------------------------------------------------------

/** Pictures are opened one after the other, so that the last one chosen stays. */
function open(file) {
  state.opening = state.opening.then(() => take(file));
}

async function take(file) {
  try {
    const picture = await readPicture(file);
    state.running?.abort();
    if (state.picture) URL.revokeObjectURL(state.picture.url);
    Object.assign(state, { picture, answers: [], shown: null, pinned: [] });
    $("picture").src = picture.url;
    $("picture").alt = picture.name;
    $("drop").style.setProperty("--ratio", picture.width / picture.height);
    $("drop").classList.toggle("tiny", Math.max(picture.width, picture.height) < 200);
    $("empty").hidden = true;
    $("frame").hidden = $("another").hidden = false;
    say("");
    render();
    renderHistory();
    if (TASKS[task()].field) $("words").focus();
  } catch (error) {
    say(error);
  }
}

function takeFrom(data) {
  const file = fileOf(data);
  if (file) open(file);
  else say("There is no picture file in it. Links are not fetched: save the picture first, then drop the file.");
}

for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    // Leaving one element for another within the page is not leaving.
    document.body.classList.toggle("dragging", name.startsWith("drage") || name === "dragover" || (name === "dragleave" && !!event.relatedTarget));
    if (name === "drop") takeFrom(event.dataTransfer);
  });
}
document.addEventListener("paste", (event) => {
  const inField = event.target.closest?.("input, textarea");
  if (fileOf(event.clipboardData)) takeFrom(event.clipboardData);
  else if (!inField) say("There is no picture in the clipboard.");
});
$("file").addEventListener("change", () => {
  if ($("file").files[0]) open($("file").files[0]);
  $("file").value = ""; // the same file may be chosen again
});
$("samples").addEventListener("click", async (event) => {
  const name = event.target.closest("[data-sample]")?.dataset.sample;
  if (!name) return;
  try {
    const response = await fetch(`samples/${name}`);
    if (!response.ok) throw new Problem(`The sample ${name} is not there (${response.status}).`);
    open(new File([await response.blob()], name, { type: "image/png" }));
  } catch (error) {
    say(error instanceof Problem ? error : "The server cannot be reached. Is it running?");
  }
});

// --- The question ----------------------------------------------------------------------------------------------------

const task = () => document.querySelector("[name=task]:checked").value;

function renderTask() {
  const { field, label = "", hint, like = "" } = TASKS[task()];
  $("words").hidden = $("words-label").hidden = !field;
  $("words-label").textContent = label;
  $("words").placeholder = like;
  $("hint").textContent = hint;
}

/** What is asked, as the server takes it. */
function readQuestion() {
  const { field, label } = TASKS[task()];
  const words = $("words").value.trim();
  if (!state.picture) throw new Problem("Choose a picture first: drop one, paste one, or take a sample.");
  if (field && !words) {
    $("words").focus();
    throw new Problem(`Write something under "${label}" first.`);
  }
  const names = () => words.split(/[,\n]/).map((name) => name.trim()).filter(Boolean);
  return { task: task(), ...(field && { [field]: field === "names" ? names() : words }) };
}

async function send() {
  await state.opening; // a large picture takes a moment
  if (state.running) return;
  let question;
  try {
    question = readQuestion();
  } catch (error) {
    return say(error);
  }
  const { picture } = state;
  const running = (state.running = new AbortController());
  const answer = { question, letters: [], objects: [], done: null, times: {}, busy: true, frame: { ...picture.sent } };
  state.answers.push(answer);
  say("");
  show(answer);
  $("status").textContent = "Answering.";
  const started = performance.now();
  const elapsed = () => performance.now() - started;
  try {
    const body = { ...question, image: await picture.encoded(), mask: "rle" };
    for await (const { name, data } of ask(body, sessionStorage.getItem(KEY), running.signal)) {
      if (name === "text") {
        answer.letters.push(...data.text);
        if (data.text.trim()) answer.times.word ??= elapsed();
      } else if (name === "object") {
        answer.objects[data.number] = { ...data.object, at: data.at };
        answer.times.object ??= elapsed();
      } else if (name === "done") {
        answer.done = data;
        answer.times.whole = elapsed();
        answer.frame = { width: data.width, height: data.height, grid: data.grid };
        // Where the server refines masks, those of the whole answer are the finer ones.
        data.objects.forEach((found, number) => {
          answer.objects[number] = { ...answer.objects[number], ...found, outline: undefined };
        });
      }
      if (state.shown === answer) renderSoon();
    }
  } catch (error) {
    answer.broken = running.signal.aborted ? "Cancelled." : error;
  }
  answer.busy = false;
  state.running = null;
  if (state.picture !== picture) return;
  if (answer.broken) say(answer.broken);
  const count = answer.objects.length;
  const ended = `${answer.letters.join("")} ${count} ${count === 1 ? "object" : "objects"} found.`;
  $("status").textContent = answer.broken ? "" : `Answer: ${ended}`;
  render();
  renderHistory();
}

/** Tell what went wrong; an empty text takes it back. */
function say(problem) {
  $("problem").textContent = problem instanceof Error && !(problem instanceof Problem) ? `The page failed: ${problem.message}` : problem.message ?? problem;
  if (problem.code === "key") {
    $("key-box").open = true;
    $("key").focus();
  }
}

$("tasks").addEventListener("change", renderTask);
$("question").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("words").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
$("cancel").addEventListener("click", () => state.running?.abort());
$("key").value = sessionStorage.getItem(KEY) ?? "";
$("key").addEventListener("input", () => sessionStorage.setItem(KEY, $("key").value.trim()));
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-box").open = false;
  $("ask").focus();
});

// --- The answer ------------------------------------------------------------------------------------------------------

const title = ({ question }) => {
  const words = question.names?.join(", ") ?? question.sentence ?? question.prompt;
  const name = document.querySelector(`[name=task][value=${question.task}]`).nextSibling.textContent;
  return [make("b", { textContent: name }), words ? ` ${words}` : ""];
};
const known = ({ objects }) => [...objects.keys()].filter((number) => objects[number]);
const visible = (answer) => known(answer).filter((number) => answer.objects[number].score >= Number($("threshold").value));
const layers = () => new Set([...$("layers").querySelectorAll(":checked")].map(({ value }) => value));

function show(answer) {
  Object.assign(state, { shown: answer, pinned: [] });
  render();
  renderHistory();
}

let waiting = 0;
function renderSoon() {
  waiting ||= requestAnimationFrame(() => render());
}

function render() {
  cancelAnimationFrame(waiting);
  waiting = 0;
  const answer = state.shown;
  $("ask").hidden = !!state.running;
  $("cancel").hidden = !state.running;
  $("answer").hidden = !answer;
  $("frame").classList.toggle("answered", !!answer);
  if (!answer) {
    for (const id of ["overlay", "tags", "rows", "text"]) $(id).replaceChildren();
    $("overlay").key = null;
    return renderChoice();
  }
  $("answer").setAttribute("aria-busy", answer.busy);
  $("asked").replaceChildren(...title(answer));
  patch($("text"), segmentsOf(answer).map(textNode));
  renderRows(answer);
  renderOverlay(answer);
  renderTimes(answer);
  $("warnings").replaceChildren(...notes(answer).map((textContent) => make("li", { textContent })));
  $("raw").hidden = !answer.done;
  if ($("raw").open) renderJson();
  renderChoice();
}

const notes = ({ done }) => [...(done?.truncated ? ["The answer was cut at the longest length."] : []), ...(done?.warnings ?? [])];

/** A segment of the text as `patch` takes it. */
function textNode({ key, text, numbers, piece }) {
  const create = () => {
    if (!numbers) return document.createTextNode(text);
    const node = piece
      ? pieceOf(state.shown, numbers[0], 52)
      : make("span", { className: "mention", textContent: text, tabIndex: 0, role: "button" });
    if (piece === "alone") Object.assign(node, { tabIndex: 0, role: "button", ariaLabel: state.shown.objects[numbers[0]].label });
    node.style.setProperty("--colour", colourOf(numbers[0]));
    node.dataset.objects = numbers.join(" ");
    return node;
  };
  return { key: `${state.answers.indexOf(state.shown)} ${key}`, text, create };
}

function pieceOf(answer, number, side) {
  const canvas = make("canvas", { className: "piece", width: side, height: side });
  drawPiece(canvas, state.picture, answer.objects[number], answer.frame);
  return canvas;
}

function renderRows(answer) {
  const wanted = known(answer).map((number) => ({ key: `${state.answers.indexOf(answer)}/${number}`, text: "", create: () => row(answer, number) }));
  patch($("rows"), wanted);
}

function row(answer, number) {
  const { label, score, box, patches } = answer.objects[number];
  const [x0, y0, x1, y1] = originalBox(box, state.picture, answer.frame).map(Math.round);
  const count = new Set(patches).size;
  const words = make("span", { className: "label", textContent: label });
  const place = make("span", { className: "place", textContent: `${x0}, ${y0} to ${x1}, ${y1} · ${count} ${count === 1 ? "patch" : "patches"}` });
  const meter = make("span", { className: "meter", ariaHidden: "true" });
  const button = make("button", { type: "button" }, pieceOf(answer, number, 88), words, make("span", { className: "score", textContent: score.toFixed(2) }), place, meter);
  button.style.setProperty("--colour", colourOf(number));
  button.style.setProperty("--score", score);
  button.dataset.objects = number;
  return make("li", {}, button);
}

function renderOverlay(answer) {
  const { objects, frame } = answer;
  const overlay = $("overlay");
  overlay.setAttribute("viewBox", `0 0 ${frame.width} ${frame.height}`);
  overlay.setAttribute("preserveAspectRatio", "none");
  const numbers = inOrder(objects);
  const key = JSON.stringify([state.answers.indexOf(answer), numbers, frame]);
  if (overlay.key === key) return;
  overlay.key = key;
  overlay.replaceChildren(...(frame.grid ? [gridShape(frame.grid, frame)] : []), ...numbers.map((number) => objectShape(objects[number], number, frame)));
  $("tags").classList.toggle("crowded", numbers.length > FEW);
  $("tags").replaceChildren(...numbers.map((number) => tag(objects[number], number, frame)));
}

function tag({ label, box: [x0, y0, x1] }, number, { width, height }) {
  const element = make("span", { className: "tag", textContent: label });
  element.dataset.objects = number;
  const style = { "--colour": colourOf(number), top: `${(100 * y0) / height}%` };
  if ((x0 + x1) / 2 < 0.6 * width) style.left = `${Math.max(0, (100 * x0) / width)}%`;
  else style.right = `${Math.max(0, 100 - (100 * x1) / width)}%`;
  for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
  element.classList.toggle("within", y0 < 0.08 * height);
  return element;
}

function renderTimes({ times, done }) {
  const figures = [["First word", times.word], ["First object", times.object], ["Whole answer", times.whole]];
  const server = Object.entries(done?.milliseconds ?? {}).map(([name, value]) => [`Server: ${name.replaceAll("_", " ")}`, value]);
  const rows = [...figures, ...server].filter(([, value]) => value !== undefined);
  const entries = rows.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: seconds(value) })));
  if (done?.model) entries.push(make("div", {}, make("dt", { textContent: "Model" }), make("dd", { textContent: [done.model, done.version].filter(Boolean).join(" ") })));
  $("times").replaceChildren(...entries);
}

function renderJson() {
  $("json").textContent = JSON.stringify(state.shown?.done, null, 1);
}

function renderHistory() {
  $("history").hidden = state.answers.length < 2;
  const entry = (answer) => {
    const dots = known(answer).slice(0, FEW).map((number) => {
      const dot = make("i", { ariaHidden: "true" });
      dot.style.setProperty("--colour", colourOf(number));
      return dot;
    });
    const button = make("button", { type: "button", onclick: () => show(answer) }, make("span", { className: "asked" }, ...title(answer)), make("span", { className: "dots" }, ...dots));
    if (answer === state.shown) button.setAttribute("aria-current", "true");
    return make("li", {}, button);
  };
  $("past").replaceChildren(...state.answers.map(entry).reverse());
}

// --- What is drawn, and what is lit ----------------------------------------------------------------------------------

/** Apply threshold and switches to all that stands for an object. */
function renderChoice() {
  const answer = state.shown;
  const shown = new Set(answer ? visible(answer) : []);
  const count = answer ? known(answer).length : 0;
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
  $("frame").dataset.layers = [...layers()].join(" ");
  for (const element of document.querySelectorAll("[data-objects]")) {
    element.classList.toggle("below", !numbersOf(element).some((number) => shown.has(number)));
  }
  const hidden = count - shown.size;
  const found = `${count} ${count === 1 ? "object" : "objects"}`;
  $("found").textContent = answer?.busy && !count ? "" : hidden ? `${found}, ${hidden} below the score` : found;
  $("to-coco").disabled = $("to-png").disabled = !answer?.done;
  light(state.pinned);
}

const numbersOf = (element) => (element?.dataset.objects ?? "").split(" ").filter(Boolean).map(Number);
const linked = (event) => event.target.closest?.("[data-objects]");

/** Light up objects wherever they stand; none gives all the same light. */
function light(numbers) {
  document.body.classList.toggle("some-lit", numbers.length > 0);
  for (const element of document.querySelectorAll("[data-objects]")) {
    element.classList.toggle("lit", numbersOf(element).some((number) => numbers.includes(number)));
    if (element.role === "button" || element.type === "button") element.ariaPressed = numbersOf(element).some((number) => state.pinned.includes(number));
  }
}

function pin(numbers) {
  state.pinned = String(numbers) === String(state.pinned) ? [] : numbers;
  light(state.pinned);
}

for (const name of ["pointerover", "focusin"]) {
  document.addEventListener(name, (event) => light(linked(event) ? numbersOf(linked(event)) : state.pinned));
}
document.addEventListener("click", (event) => {
  const element = linked(event);
  if (!element) return event.target.closest?.("#frame") && pin([]);
  pin(numbersOf(element));
  if (element.closest("#frame") && state.pinned.length) {
    $("rows").querySelector(`[data-objects="${state.pinned[0]}"]`)?.scrollIntoView({ block: "nearest" });
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") pin([]);
  if ((event.key === "Enter" || event.key === " ") && event.target.role === "button") {
    event.preventDefault();
    pin(numbersOf(event.target));
  }
});
$("threshold").addEventListener("input", renderChoice);
$("layers").addEventListener("change", renderChoice);
$("raw").addEventListener("toggle", renderJson);

// --- Taking it away --------------------------------------------------------------------------------------------------

function save(blob, ending) {
  const link = make("a", { href: URL.createObjectURL(blob), download: state.picture.name.replace(/\.\w+$/, "") + ending });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser reads it after the click
}

$("to-coco").addEventListener("click", () => {
  const { picture, shown } = state;
  const data = toCoco(picture, visible(shown).map((number) => shown.objects[number]), shown.frame);
  save(new Blob([JSON.stringify(data)], { type: "application/json" }), ".coco.json");
});
$("to-png").addEventListener("click", async () => {
  const { picture, shown } = state;
  save(await toPng(picture, shown.objects, visible(shown), shown.frame, layers()), ".padt.png");
});

renderTask();
render();
