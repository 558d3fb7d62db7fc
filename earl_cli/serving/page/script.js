// One page, one photo at a time: send it with an instruction, follow the server's events, compare, download.

const $ = (id) => document.getElementById(id);
const MOST_KEPT = 24;
const THUMB = 320;
const EXTENSIONS = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" };
const settings = { suggestions: [], max_variants: 8, max_bytes: 32 << 20, needs_key: false, model: "" };

let photo = null; // { blob, url, name }: what will be edited
let running = null; // the AbortController of the edit that is being made
let shown = null; // { edit, index }: what the slider shows
const made = []; // edits, oldest first: { photo, prompt, results: [{ blob, url, seed }], notes, seconds }

// -- photo ----------------------------------------------------------------------------------------------------------

function take(file, name = file.name || "photo") {
  if (!file.type.startsWith("image/") && file.type !== "") return fail(`${name} is no image.`);
  if (file.size > settings.max_bytes) return fail(`${name} is larger than ${Math.floor(settings.max_bytes / 2 ** 20)} MB.`);
  stop();
  const old = photo;
  photo = { blob: file, url: URL.createObjectURL(file), name };
  if (old && !made.some((edit) => edit.photo === old)) URL.revokeObjectURL(old.url);
  fail("");
  show(null);
  $("prompt").focus({ preventScroll: true });
}

function offered(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? transfer?.files?.[0];
}

// -- what the stage shows -------------------------------------------------------------------------------------------

function show(view) {
  shown = view;
  const base = view ? view.edit.photo : photo;
  const result = view?.edit.results[view.index];
  $("empty").hidden = Boolean(base);
  $("about").hidden = !base;
  $("before").src = base.url;
  $("before").alt = result ? "The photo before the edit" : "The photo";
  for (const each of [$("after"), $("download"), $("further")]) each.hidden = !result;
  if (result) {
    $("after").src = result.url;
    $("after").alt = `The photo after the edit: ${view.edit.prompt}`;
    $("download").href = result.url;
    $("download").download = fileName(base.name, result.blob.type);
  }
  caption(base, view, result);
  list($("notes"), view?.edit.notes ?? []);
  thumbs($("variants"), view && view.edit.results.length > 1 ? view.edit.results.map((_, index) => ({ edit: view.edit, index })) : [], ({ index }) => String(index + 1));
  thumbs($("made"), made.toReversed().map((edit) => ({ edit, index: edit === view?.edit ? view.index : 0 })), ({ edit }) => edit.prompt);
  $("history").hidden = made.length === 0;
}

function caption(base, view, result) {
  const detail = document.createElement("span");
  const seconds = view && `${view.edit.seconds.toFixed(1)} s`;
  detail.textContent = result ? `seed ${result.seed} · ${seconds}` : "ready to be edited";
  $("caption").replaceChildren(result ? view.edit.prompt : base.name, detail);
}

function list(place, lines) {
  place.hidden = lines.length === 0;
  place.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
}

function thumbs(place, views, words) {
  place.hidden = views.length === 0;
  place.replaceChildren(
    ...views.map((view) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      const label = Object.assign(document.createElement("span"), { textContent: words(view) });
      const pressed = view.edit === shown?.edit && view.index === shown.index;
      button.setAttribute("aria-pressed", String(pressed));
      button.append(copy(view.edit.results[view.index].thumb), label);
      button.addEventListener("click", () => {
        const at = [...place.children].indexOf(button);
        photo = view.edit.photo;
        show(view);
        place.children[at]?.focus();
      });
      return button;
    }),
  );
}

async function thumb(blob) {
  const canvas = document.createElement("canvas");
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

function copy(canvas) {
  const other = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  other.setAttribute("aria-hidden", "true");
  other.getContext("2d").drawImage(canvas, 0, 0);
  return other;
}

function fileName(name, type) {
  return `${name.replace(/\.\w{1,5}$/, "").replace(/\.edited$/, "")}.edited.${EXTENSIONS[type] ?? "png"}`;
}

// A file that the browser can't show, TIFF for instance, leaves the edit alone on the stage.
function fit() {
  const seen = [$("before"), $("after")].find((image) => image.getAttribute("src") && !image.hidden && image.naturalWidth);
  const compared = Boolean(shown && $("before").naturalWidth && $("after").naturalWidth);
  $("frame").hidden = !seen;
  $("unseen").hidden = Boolean($("before").naturalWidth) || !$("before").complete;
  $("frame").classList.toggle("compared", compared);
  for (const each of [$("slider"), $("handle"), ...document.querySelectorAll(".tag")]) each.hidden = !compared;
  if (!seen) return;
  $("frame").style.setProperty("--ratio", String(seen.naturalWidth / seen.naturalHeight));
  $("frame").style.setProperty("--natural", String(seen.naturalWidth));
}

for (const image of [$("before"), $("after")]) {
  image.addEventListener("load", fit);
  image.addEventListener("error", fit);
}

// -- the slider -----------------------------------------------------------------------------------------------------

function place(at) {
  const value = Math.min(100, Math.max(0, at));
  $("slider").value = String(value);
  $("slider").setAttribute("aria-valuetext", `${Math.round(100 - value)} % edited`);
  $("frame").style.setProperty("--at", String(value));
  document.querySelector(".tag.left").style.opacity = value < 18 ? "0" : "1";
  document.querySelector(".tag.right").style.opacity = value > 82 ? "0" : "1";
}

let sweeping = 0;
function sweep() {
  cancelAnimationFrame(sweeping);
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return place(50);
  const start = performance.now();
  const step = (now) => {
    const share = Math.min(1, (now - start) / 900);
    place(100 - 50 * (1 - (1 - share) ** 3));
    if (share < 1) sweeping = requestAnimationFrame(step);
  };
  place(100);
  sweeping = requestAnimationFrame(step);
}

function drag(event) {
  if (!$("frame").classList.contains("compared")) return;
  cancelAnimationFrame(sweeping);
  const box = $("frame").getBoundingClientRect();
  place((100 * (event.clientX - box.left)) / box.width);
}

$("frame").addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  $("frame").setPointerCapture(event.pointerId);
  if (event.pointerType === "mouse") event.preventDefault();
  drag(event);
});
$("frame").addEventListener("pointermove", (event) => $("frame").hasPointerCapture(event.pointerId) && drag(event));
$("slider").addEventListener("input", () => {
  cancelAnimationFrame(sweeping);
  place(Number($("slider").value));
});

// -- an edit --------------------------------------------------------------------------------------------------------

async function edit() {
  const prompt = $("prompt").value.trim();
  if (!photo) return fail("Choose a photo first.");
  if (!prompt) return $("prompt").focus(), fail("Say what should change.");
  if (!$("form").reportValidity()) return;
  stop();
  const run = (running = new AbortController());
  const source = photo;
  const started = performance.now();
  fail("");
  busy("sending the photo");
  $("stage").scrollIntoView({ block: "nearest" });
  try {
    const results = [];
    let notes = [];
    for await (const event of events(await ask(source, prompt, run.signal))) {
      if (event.error) throw new Error(event.error.message);
      if (event.type === "image_edit.progress") progress(event);
      if (event.type !== "image_edit.completed") continue;
      const blob = unpacked(event.b64_json, `image/${event.output_format}`);
      results.push({ blob, url: URL.createObjectURL(blob), seed: event.seed, thumb: await thumb(blob) });
      notes = event.notes;
    }
    if (!results.length) throw new Error("The connection was lost before the edit was there. Try again.");
    keep({ photo: source, prompt, results, notes, seconds: (performance.now() - started) / 1000 });
  } catch (failure) {
    if (!run.signal.aborted) fail(inWords(failure));
  } finally {
    if (running === run) {
      running = null;
      idle();
    }
  }
}

function keep(edit) {
  made.push(edit);
  while (made.length > MOST_KEPT) made.shift().results.forEach((result) => URL.revokeObjectURL(result.url));
  show({ edit, index: 0 });
  sweep();
}

async function ask(source, prompt, signal) {
  const form = new FormData();
  const fields = { prompt, n: $("n").value, seed: $("seed").value, stream: "true", progress: "true", output_format: "source" };
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  form.append("image", source.blob, "photo");
  const key = $("key").value.trim();
  if (/[^\x20-\x7e]/.test(key)) throw new Error("This key isn't the right one.");
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch("v1/images/edits", { method: "POST", body: form, headers, signal });
  if (response.ok) return response;
  if (response.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
    throw new Error(key ? "This key isn't the right one." : "This server asks for a key.");
  }
  const answer = await response.json().catch(() => null);
  throw new Error(answer?.error?.message ?? `The server answered with status ${response.status}.`);
}

// Server-sent events, of which each has its data on one line.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let line = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const pieces = value.split("\n");
    for (const [index, piece] of pieces.entries()) {
      line.push(piece);
      if (index === pieces.length - 1) break;
      const whole = line.join("");
      line = [];
      if (whole.startsWith("data: ")) yield JSON.parse(whole.slice(6));
    }
  }
}

function unpacked(base64, type) {
  const bytes = Uint8Array.fromBase64?.(base64) ?? Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  return new Blob([bytes], { type });
}

function progress({ state, ahead, done, total }) {
  if (state === "waiting") return busy(ahead ? `waiting for ${ahead} before this one` : "waiting");
  if (!total) return busy("looking at the photo");
  if (done >= total) return busy("finishing");
  busy(`editing: ${Math.round((100 * done) / total)} %`, done / total);
}

function busy(words, share) {
  document.body.classList.add("busy");
  $("busy").hidden = false;
  $("about").hidden = $("go").disabled = true;
  if ($("state").textContent !== words) $("state").textContent = words;
  if (share === undefined) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

function idle() {
  document.body.classList.remove("busy");
  const wasFocused = $("busy").contains(document.activeElement) || document.activeElement === document.body;
  $("busy").hidden = true;
  $("about").hidden = !photo;
  $("go").disabled = false;
  if (wasFocused) $("go").focus({ preventScroll: true });
}

function stop() {
  if (!running) return;
  running.abort();
  running = null;
  idle();
}

function fail(words) {
  const sentence = words && words[0].toUpperCase() + words.slice(1);
  $("error").hidden = !words;
  $("error").textContent = sentence && !/[.!?)]$/.test(sentence) ? `${sentence}.` : sentence;
}

function inWords(failure) {
  return failure instanceof TypeError ? "The server can't be reached. Is earl serve still running?" : failure.message;
}

// -- what people do -------------------------------------------------------------------------------------------------

$("file").addEventListener("change", () => {
  if ($("file").files[0]) take($("file").files[0]);
  $("file").value = "";
});
document.addEventListener("paste", (event) => {
  const file = offered(event.clipboardData);
  if (!file) return;
  event.preventDefault();
  take(file);
});
let inside = 0;
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++inside > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --inside > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dragging");
  const file = offered(event.dataTransfer);
  if (file) take(file);
  else fail("That wasn't a file. Save the image first, then drop it here.");
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  edit();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  edit();
});
$("prompt").addEventListener("input", mark);
$("stop").addEventListener("click", stop);
$("further").addEventListener("click", () => {
  const { edit: from, index } = shown;
  take(from.results[index].blob, $("download").download);
  $("prompt").select();
});

function mark() {
  for (const chip of $("suggestions").children) {
    chip.setAttribute("aria-pressed", String(chip.textContent === $("prompt").value.trim()));
  }
}

async function begin() {
  const response = await fetch("settings");
  Object.assign(settings, await response.json());
  $("model").textContent = `model: ${settings.model}`;
  $("knows").hidden = settings.suggestions.length === 0;
  $("n").max = String(settings.max_variants);
  $("key-row").hidden = !settings.needs_key;
  $("suggestions").replaceChildren(
    ...settings.suggestions.map((words) => {
      const chip = Object.assign(document.createElement("button"), { type: "button", textContent: words });
      chip.setAttribute("aria-pressed", "false");
      chip.addEventListener("click", () => {
        $("prompt").value = words;
        mark();
        if (photo) edit();
        else fail(""), $("empty").scrollIntoView({ block: "nearest" });
      });
      return chip;
    }),
  );
}

begin().catch((failure) => fail(inWords(failure)));
