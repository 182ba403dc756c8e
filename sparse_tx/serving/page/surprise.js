/* A text coloured by how much each of its tokens surprised the model; what else was probable in the
   place of one, and what a head could read there. */

const byId = (id) => document.getElementById(id);
const COLOURS_PER_BIT = 2;
const MOST_BITS = 8;
// Cells of a block, which the browser leaves out of its layout while it is out of sight.
const BLOCK = 2000;

const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

const colour = (bits) =>
  `s${Math.floor(Math.min(MOST_BITS, Math.max(0, bits)) * COLOURS_PER_BIT)}`;

function bytesOf(hex) {
  return Uint8Array.from({ length: hex.length / 2 }, (_, n) => parseInt(hex.slice(2 * n, 2 * n + 2), 16));
}

/** How many bytes the character has that begins with this one; 0 within a character. */
function lengthOf(byte) {
  if (byte < 0x80) return 1;
  if (byte < 0xc0) return 0;
  return byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

/** The characters that begin in each token of a text, which is UTF-8 as a whole. */
function charactersOf(tokens, bytes) {
  const all = tokens.map((id) => bytes[id]);
  const whole = new Uint8Array(all.reduce((sum, each) => sum + each.length, 0));
  let at = 0;
  for (const each of all) {
    whole.set(each, at);
    at += each.length;
  }
  const decoder = new TextDecoder();
  at = 0;
  return all.map((each) => {
    let text = "";
    for (const byte of each) {
      const length = lengthOf(byte);
      if (length) {
        text += decoder.decode(whole.subarray(at, at + length));
      }
      at += 1;
    }
    return text;
  });
}

const NAMES = { " ": "space", "\n": "new line", "\t": "tab", "\r": "return" };

/** A token by itself, for people. */
function nameOf(bytes) {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    if (NAMES[text]) {
      return NAMES[text];
    }
    if (!/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(text)) {
      return text.replaceAll(" ", "\u2423");
    }
  } catch {
    // no whole characters
  }
  return [...bytes].map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
}

function element(kind, text, className) {
  const made = document.createElement(kind);
  if (text !== undefined) {
    made.textContent = text;
  }
  if (className) {
    made.className = className;
  }
  return made;
}

/** Makes the section work; returns what measures the text that stands in its field. */
export function offerSurprise(about, ask, complain) {
  const place = byId("cells");
  const view = byId("view");
  const unit = about.tokenizer === "byte" ? "byte" : "token";
  let told = null; // what the server said
  let bytes = {}; // of the tokens that occur
  let cells = [];
  let characters = [];
  let chosen = null;
  let pinned = false;
  let shown = []; // cells that are marked as read
  let reads = new Map(); // answers by layer, head and token
  let running = null;

  function draw() {
    let block = element("div", undefined, "lines");
    const blocks = [block];
    cells = told.tokens.map((id, at) => {
      if (block.childElementCount >= BLOCK && characters[at - 1].endsWith("\n")) {
        block = element("div", undefined, "lines");
        blocks.push(block);
      }
      const text = characters[at];
      const cell = element("span", text || "\u00b7", `cell ${colour(bitsPerByte(at))}`);
      cell.dataset.at = at;
      cell.classList.toggle("newline", text === "\n");
      cell.classList.toggle("inside", !text);
      block.append(cell);
      return cell;
    });
    place.replaceChildren(...blocks);
    place.scrollTop = 0;
  }

  function bitsPerByte(at) {
    return told.surprise[at] / bytes[told.tokens[at]].length;
  }

  async function measure() {
    running?.abort();
    const own = (running = new AbortController());
    complain("score-error", null);
    byId("measured").textContent = "measuring";
    try {
      const answer = await ask("/surprise", { text: byId("given").value }, own.signal);
      told = await answer.json();
    } catch (error) {
      if (error.name !== "AbortError") {
        complain("score-error", error);
        byId("measured").textContent = "";
      }
      return;
    }
    bytes = Object.fromEntries(Object.entries(told.bytes).map(([id, hex]) => [id, bytesOf(hex)]));
    characters = charactersOf(told.tokens, bytes);
    chosen = null;
    pinned = false;
    shown = [];
    reads = new Map();
    place.classList.remove("pinned");
    draw();
    byId("here").replaceChildren(element("p", "Nothing is chosen yet.", "help"));
    byId("read").textContent = "";
    view.hidden = false;
    byId("measured").textContent =
      `${number(told.bits_per_byte, 3)} bits per byte: ` +
      `${number(told.bits)} bits for ${number(told.n_bytes)} bytes`;
  }

  function describe(at) {
    const id = told.tokens[at];
    const bits = told.surprise[at];
    const heading = element("p", undefined, "figure");
    heading.append(element("code", nameOf(bytes[id])), ` ${number(bits, 2)} bits`);
    const odds = 2 ** bits;
    const where = element(
      "p",
      `${unit[0].toUpperCase()}${unit.slice(1)} ${number(at)}; the model gave it one chance in ` +
        `${number(odds, odds < 10 ? 2 : 0)}.`,
      "help",
    );
    const table = element("table");
    const head = table.createTHead().insertRow();
    for (const [name, columns] of [["Most probable here", 2], ["Chance", 1]]) {
      const cell = element("th", name);
      cell.scope = "col";
      cell.colSpan = columns;
      head.append(cell);
    }
    const body = table.createTBody();
    const places = told.top[at].map((other, n) => [other, told.top_surprise[at][n]]);
    if (!told.top[at].includes(id)) {
      places.push([id, bits]);
    }
    for (const [other, itsBits] of places) {
      const row = body.insertRow();
      row.className = other === id ? "own" : "";
      const chance = 2 ** -itsBits;
      row.insertCell().append(element("code", nameOf(bytes[other])));
      const bar = element("i");
      bar.style.width = `${100 * chance}%`;
      row.insertCell().append(bar);
      row.insertCell().textContent = `${number(100 * chance, chance < 0.01 ? 3 : 1)} %`;
    }
    byId("here").replaceChildren(heading, where, table);
  }

  function choose(at) {
    if (at === chosen) {
      return;
    }
    if (chosen !== null) {
      cells[chosen].classList.remove("chosen");
    }
    chosen = at;
    cells[at].classList.add("chosen");
    describe(at);
    read();
  }

  async function read() {
    const [layer, head, token] = [byId("layer").value, byId("head").value, chosen];
    if (token === null) {
      return;
    }
    const key = `layer=${layer}&head=${head}&token=${token}`;
    if (!reads.has(key)) {
      reads.set(key, ask(`/reads?${key}`).then((answer) => answer.json()));
    }
    let found;
    try {
      found = await reads.get(key);
    } catch (error) {
      reads.delete(key);
      byId("read").textContent = `Not known: ${error.message}`;
      return;
    }
    if (token !== chosen || layer !== byId("layer").value || head !== byId("head").value) {
      return; // another has been chosen meanwhile
    }
    for (const cell of shown) {
      cell.classList.remove("reads");
    }
    const read = new Set();
    for (const [start, stop, step] of found.tokens) {
      for (let at = start; at < stop; at += step) {
        read.add(at);
      }
    }
    shown = [...read].map((at) => cells[at]);
    for (const cell of shown) {
      cell.classList.add("reads");
    }
    const count = read.size === 1 ? `1 ${unit}` : `${number(read.size)} ${unit}s`;
    byId("read").textContent =
      `When it was predicted, this head (${about.patterns[layer][head]}) could read ${count} before ` +
      `it${found.start_symbol ? ", and the start symbol" : ""}: those underlined.`;
  }

  function pin(is) {
    pinned = is;
    place.classList.toggle("pinned", is);
  }

  function cellAt(event) {
    const cell = event.target.closest(".cell");
    return cell ? Number(cell.dataset.at) : null;
  }

  place.addEventListener("pointerover", (event) => {
    const at = cellAt(event);
    if (at !== null && !pinned) {
      choose(at);
    }
  });
  place.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (at !== null) {
      pin(!(pinned && at === chosen));
      choose(at);
    }
  });
  place.addEventListener("keydown", (event) => {
    const last = cells.length - 1;
    const now = chosen ?? -1;
    const moves = {
      ArrowLeft: Math.max(0, now - 1),
      ArrowRight: Math.min(last, now + 1),
      Home: 0,
      End: last,
    };
    if (event.key === "Escape") {
      pin(false);
    } else if (event.key in moves && cells.length) {
      event.preventDefault();
      pin(true);
      choose(moves[event.key]);
      cells[chosen].scrollIntoView({ block: "nearest" });
    }
  });
  byId("score").addEventListener("submit", (event) => {
    event.preventDefault();
    measure();
  });
  byId("given").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      measure();
    }
  });

  for (let bits = 0; bits <= MOST_BITS; bits += 1) {
    const name = bits === MOST_BITS ? `${bits}+` : bits === 0 ? "0 bits" : `${bits}`;
    byId("scale").append(element("li", name, colour(bits)));
  }
  const option = (value, text) => {
    const made = element("option", text);
    made.value = value;
    return made;
  };
  about.patterns.forEach((heads, layer) => {
    const distinct = [...new Set(heads)].join(" / ");
    byId("layer").append(option(layer, `${layer}: ${distinct}`));
  });
  about.patterns[0].forEach((_, head) => byId("head").append(option(head, `${head}`)));
  byId("layer").addEventListener("change", read);
  byId("head").addEventListener("change", read);

  const besides = [];
  if (about.recent_tokens > 1) besides.push(`the last ${about.recent_tokens} tokens`);
  if (about.ngrams.length) besides.push(`n-grams of ${about.ngrams.join(", ")} tokens`);
  if (about.recall) besides.push("what followed the same tokens before, anywhere in the context");
  byId("besides").textContent = besides.length
    ? `Whatever the pattern, this model also looks up ${besides.join(", ")}.`
    : "";
  return measure;
}
