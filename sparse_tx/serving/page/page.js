/* Writes texts as they come, and fills in what the page says of its model. The root element says how
   it went: data-ready comes when the page can be used, data-errors has what went wrong in it. */

import { offerSurprise } from "./surprise.js";

const root = document.documentElement;
const errors = [];
function report(message) {
  errors.push(String(message));
  root.dataset.errors = JSON.stringify(errors);
}
window.addEventListener("error", (event) => report(event.message));
window.addEventListener("unhandledrejection", (event) => report(event.reason));

// Between two paintings of a text that is being written.
const SHORTEST_PACE_MS = 30;

const byId = (id) => document.getElementById(id);

/** Asks the server; what it refuses is thrown as an error with its sentence. */
export async function ask(path, body, signal) {
  const options = { signal };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") {
      throw error;
    }
    throw new Error("the server does not answer; is it still running?");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told?.error?.message ?? `the server answers with status ${answer.status}`);
  }
  return answer;
}

/** Shows a sentence at its place, or takes it away. */
export function complain(id, error) {
  const place = byId(id);
  place.hidden = !error;
  place.textContent = error ? `Not done: ${error.message}` : "";
}

/** Yields the chunks of a stream of server-sent events, until it says that it is done. */
async function* chunksOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      throw new Error("the server broke off");
    }
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") {
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) {
        throw new Error(chunk.error.message);
      }
      yield chunk;
    }
  }
}

/** The fields of the form that are filled in, as a request. */
function request(form, model) {
  const body = { model, prompt: byId("prompt").value, stream: true };
  body.stream_options = { include_usage: true };
  for (const field of form.querySelectorAll(".settings input")) {
    if (field.name === "stop") {
      if (field.value) {
        body.stop = field.value.replaceAll("\\n", "\n").replaceAll("\\t", "\t");
      }
    } else if (field.value !== "") {
      body[field.name] = Number(field.value);
    }
  }
  return body;
}

function offerWriting(model, surprise) {
  const form = byId("ask");
  const text = byId("text");
  const status = byId("status");
  const buttons = { go: byId("go"), stop: byId("stop") };
  let running = null;

  /** Appends what it is given to the page, now and then: every token by itself would be laid out
      with all of the text before it, and a fast model would leave no time for anything else. */
  function typewriter(made) {
    let waiting = "";
    let timer = 0;
    let pace = SHORTEST_PACE_MS;
    function paint() {
      clearTimeout(timer);
      timer = 0;
      if (!waiting) {
        return;
      }
      const began = performance.now();
      const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 20;
      made.appendData(waiting);
      waiting = "";
      if (atEnd) {
        text.scrollTop = text.scrollHeight;
      }
      pace = Math.max(SHORTEST_PACE_MS, 4 * (performance.now() - began));
    }
    function write(more) {
      waiting += more;
      timer ||= setTimeout(paint, pace);
    }
    return { paint, write };
  }

  function show(prompt) {
    const given = document.createElement("span");
    given.className = "given";
    given.textContent = prompt;
    const made = document.createTextNode("");
    text.replaceChildren(given, made);
    byId("made").hidden = false;
    return made;
  }

  async function write() {
    running = new AbortController();
    buttons.go.disabled = true;
    buttons.stop.disabled = false;
    complain("write-error", null);
    const began = performance.now();
    let writer = null;
    let ending = "stopped";
    let usage = null;
    try {
      const body = request(form, model);
      status.textContent = "waiting for the first token";
      const answer = await ask("/v1/completions", body, running.signal);
      writer = typewriter(show(body.prompt));
      text.setAttribute("aria-busy", "true");
      status.textContent = "writing";
      let looked = performance.now();
      for await (const chunk of chunksOf(answer)) {
        usage = chunk.usage ?? usage;
        for (const choice of chunk.choices) {
          writer.write(choice.text);
          if (choice.finish_reason) {
            ending = choice.finish_reason === "stop" ? "ended at the stop string" : "done";
          }
        }
        // Chunks that are here already come without a break in which a click could be heard.
        if (performance.now() - looked > SHORTEST_PACE_MS) {
          await new Promise((go) => setTimeout(go));
          looked = performance.now();
        }
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        complain("write-error", error);
        ending = writer ? "broken off" : "";
      }
    }
    writer?.paint();
    const seconds = (performance.now() - began) / 1000;
    status.textContent = usage
      ? `${ending}: ${usage.completion_tokens.toLocaleString("en")} tokens, ` +
        `${Math.round(usage.completion_tokens / seconds).toLocaleString("en")} tokens/s`
      : ending;
    text.removeAttribute("aria-busy");
    buttons.go.disabled = false;
    buttons.stop.disabled = true;
    running = null;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running) {
      write();
    }
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  buttons.stop.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      running?.abort();
    }
  });
  byId("go-on").addEventListener("click", () => {
    byId("prompt").value = text.textContent;
    form.requestSubmit();
  });
  byId("look").addEventListener("click", () => {
    byId("given").value = text.textContent;
    byId("surprise").scrollIntoView();
    surprise();
  });
}

function describe(about) {
  const number = (value) => value.toLocaleString("en");
  document.title = `${about.model}: sparse_tx serve`;
  byId("model").textContent = about.model;
  byId("facts").textContent =
    `${number(about.parameters)} parameters after ${number(about.step)} steps; attention ` +
    `${about.pattern}; context ${number(about.seq_len)} tokens of ${number(about.vocab_size)} ` +
    `kinds (${about.tokenizer}).`;
  for (const place of document.querySelectorAll(".unit")) {
    place.textContent = about.tokenizer === "byte" ? "byte" : "token";
  }
  const tokens = document.querySelector("[name=max_tokens]");
  tokens.max = about.max_tokens_limit;
  tokens.value = Math.min(tokens.value, about.max_tokens_limit);
  byId("base").textContent = `${location.origin}/v1`;
  byId("example").textContent =
    `curl ${location.origin}/v1/completions -H "Content-Type: application/json" \\\n` +
    `  -d '{"prompt": "The ", "max_tokens": 100, "temperature": 0.8}'`;
}

try {
  const about = await (await ask("/about")).json();
  describe(about);
  const surprise = offerSurprise(about, ask, complain);
  offerWriting(about.model, surprise);
  root.dataset.ready = "true";
} catch (error) {
  report(error);
  complain("write-error", error);
}
