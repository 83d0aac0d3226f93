// Draws an inspection: tokens to point at, what was expected after the one chosen, and where it looked.
// Runs as the `js_on_load` of a gr.HTML: `element`, `props` and `watch` are gradio's. Text goes in by textContent only,
// never through gradio's templates, which would evaluate a `${...}` in it.
const find = (name) => element.querySelector(`[data-part="${name}"]`);
const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const percent = (share) => (share >= 0.1 ? `${Math.round(share * 100)} %` : `${(share * 100).toPrecision(2)} %`);
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "·");
const HUES = [210, 30, 130, 280, 60]; // neighbours differ, also for most who do not see all colours

let text = null; // the ids of the text shown: another one begins near its end, another layer of it keeps the place
let maps = null; // weights of the layer shown, (heads, T, T), 0 to 255
let position = 0;
let head = 0;
let colour = "surprise";

const weight = (from, to) => maps[(head * props.value.tokens.length + from) * props.value.tokens.length + to] / 255;

function shade(index) {
  const token = props.value.tokens[index];
  if (colour === "tokens") return `hsl(${HUES[index % HUES.length]} 80% 55% / 0.3)`;
  if (colour === "attention") return maps && index <= position ? `hsl(265 80% 55% / ${0.9 * Math.sqrt(weight(position, index))})` : "transparent";
  // Ten nats are as good as never expected.
  return token.loss === null ? "transparent" : `hsl(${45 - 4 * Math.min(token.loss, 10)} 95% 55% / ${0.08 + 0.07 * Math.min(token.loss, 10)})`;
}

function drawTokens() {
  const strip = find("tokens");
  strip.replaceChildren();
  props.value.tokens.forEach((token, index) => {
    const chip = make("button", index === position ? "chip chosen" : "chip", visible(token.text));
    chip.type = "button";
    chip.style.backgroundColor = shade(index);
    chip.title = token.loss === null ? `id ${token.id}` : `id ${token.id}, loss ${token.loss.toFixed(2)} nats, rank ${token.rank}`;
    chip.setAttribute("aria-pressed", index === position);
    chip.onclick = () => stepTo(index);
    strip.append(chip);
    if (token.text.includes("\n")) strip.append(make("i", "break"));
  });
}

function drawExpected() {
  const { tokens } = props.value;
  const next = tokens[position + 1];
  find("expected-title").textContent = `After “${visible(tokens[position].text)}” (token ${position + 1} of ${tokens.length}) the model expects`;
  const list = find("expected");
  list.replaceChildren();
  let found = false;
  for (const [candidate, share] of tokens[position].expected) {
    const isNext = Boolean(next) && !found && candidate === next.text;
    found = found || isNext;
    list.append(bar(candidate, share, isNext));
  }
  const said = find("came");
  if (!next) said.textContent = "Here the text ends.";
  else said.textContent = `What came: “${visible(next.text)}”, held ${percent(Math.exp(-next.loss))} likely: rank ${next.rank}, loss ${next.loss.toFixed(2)} nats.`;
}

function bar(label, share, isNext, place) {
  const row = make("div", isNext ? "bar came" : "bar");
  const track = make("span", "track");
  const fill = make("span", "fill");
  fill.style.width = `${100 * share}%`;
  track.append(fill);
  row.append(make("span", "label", (place ? `${place} ` : "") + visible(label)), track, make("span", "share", percent(share)));
  return row;
}

// One pixel a pair of tokens; the canvas is scaled up by CSS. Dark means much; the square root lets small shares show.
function paint(canvas, which, marked) {
  const count = props.value.tokens.length;
  canvas.width = canvas.height = count;
  const context = canvas.getContext("2d");
  const image = context.createImageData(count, count);
  for (let from = 0; from < count; from++) {
    for (let to = 0; to < count; to++) {
      const share = Math.sqrt(maps[(which * count + from) * count + to] / 255);
      const at = 4 * (from * count + to);
      const faint = to > from ? 0.06 : 0;
      image.data.set([139, 92, 246, 255 * Math.max(share, faint, from === marked ? 0.18 : 0)], at);
    }
  }
  context.putImageData(image, 0, 0);
}

function drawAttention() {
  find("attention").hidden = !maps;
  if (!maps) return;
  const heads = find("heads");
  heads.replaceChildren();
  for (let which = 0; which < props.value.heads; which++) {
    const chip = make("button", which === head ? "head chosen" : "head");
    chip.type = "button";
    chip.setAttribute("aria-label", `head ${which + 1}`);
    const canvas = make("canvas");
    paint(canvas, which, -1);
    chip.append(canvas, make("span", "", `${which + 1}`));
    chip.onclick = () => {
      head = which;
      draw();
    };
    heads.append(chip);
  }
  const layers = find("layers");
  layers.replaceChildren();
  for (let which = 1; which <= props.value.layers; which++) {
    const chip = make("button", "", `${which}`);
    chip.type = "button";
    chip.setAttribute("aria-label", `layer ${which}`);
    chip.setAttribute("aria-pressed", which === props.value.layer);
    chip.onclick = () => trigger("pick", { layer: which });
    layers.append(chip);
  }
  const map = find("map");
  paint(map, head, position);
  const { tokens } = props.value;
  const ranked = tokens.slice(0, position + 1).map((token, index) => [token.text, weight(position, index), index]);
  ranked.sort((one, other) => other[1] - one[1]);
  find("looks-title").textContent = `Layer ${props.value.layer}, head ${head + 1}: “${visible(tokens[position].text)}” looks at`;
  const list = find("looks");
  list.replaceChildren(...ranked.slice(0, 6).map(([label, share, index]) => bar(label, share, false, index + 1)));
  map.onclick = (event) => choose(cell(event).from);
  map.onpointermove = (event) => {
    const { from, to } = cell(event);
    map.title = `“${visible(tokens[from].text)}” (${from + 1}) → “${visible(tokens[to].text)}” (${to + 1}): ${percent(weight(from, to))}`;
  };
}

function cell(event) {
  const box = find("map").getBoundingClientRect();
  const place = (at, size) => Math.max(0, Math.min(Math.floor((at / size) * props.value.tokens.length), props.value.tokens.length - 1));
  return { from: place(event.clientY - box.top, box.height), to: place(event.clientX - box.left, box.width) };
}

function choose(index) {
  position = index;
  draw();
}

// The tokens are drawn anew, so the focus has to be given to the new one: the arrow keys go on from there.
function stepTo(index) {
  choose(index);
  find("tokens").querySelector(".chosen").focus();
}

function draw() {
  drawTokens();
  drawExpected();
  drawAttention();
}

function begin() {
  const seen = props.value;
  element.querySelector(".lens").hidden = !seen;
  if (!seen) return;
  maps = seen.maps === null ? null : Uint8Array.from(atob(seen.maps), (letter) => letter.charCodeAt(0));
  const ids = seen.tokens.map((token) => token.id).join();
  if (ids !== text) {
    text = ids;
    position = Math.max(0, seen.tokens.length - 2); // the last one whose prediction can be checked
  }
  head = Math.min(head, seen.heads - 1);
  find("summary").textContent = seen.summary;
  draw();
}

element.querySelectorAll("[data-colour]").forEach((button) => {
  button.onclick = () => {
    colour = button.dataset.colour;
    element.querySelectorAll("[data-colour]").forEach((other) => other.setAttribute("aria-pressed", other === button));
    drawTokens();
  };
});
find("tokens").onkeydown = (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  stepTo(Math.max(0, Math.min(position + step, props.value.tokens.length - 1)));
};
watch("value", begin);
begin();
