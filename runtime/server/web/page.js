// The page: a conversation with one of the server's models.

import MarkdownIt from "./markdown-it.js";
import {consentText, showRoute, takenBack} from "./route.js";
import {ServerError, chat, models} from "./server.js";

const element = (id) => document.getElementById(id);
const [model, trouble, settings, system, key] = ["model", "trouble", "settings", "system", "key"].map(element);
const [privacy, privacyBar, nothingLeaves] = ["privacy", "privacy-bar", "nothing-leaves"].map(element);
const [conversation, composer, question, send, stop] = ["conversation", "composer", "question", "send", "stop"].map(element);

// What a model writes is a stranger's text: no HTML of its own, and no pictures, which would be fetched.
const markdown = new MarkdownIt({html: false, breaks: true}).disable("image");
markdown.renderer.rules.link_open = (tokens, i, options, _, self) => {
  tokens[i].attrSet("target", "_blank");
  tokens[i].attrSet("rel", "noopener noreferrer");
  return self.renderToken(tokens, i, options);
};

let messages = []; // what was said, as the server wants it
let isRouted = false; // whether the server may ask others
let running = null; // stops the answer that is coming

// Models

async function showModels() {
  try {
    const known = await models(key.value);
    const chosen = model.value;
    isRouted = known.some(({routed}) => routed);
    showPrivacy();
    model.replaceChildren(...known.map(({id, state}) => new Option(state === "loaded" ? id : `${id} (${state})`, id)));
    if (known.some(({id}) => id === chosen)) model.value = chosen;
    trouble.hidden = true;
  } catch (error) {
    trouble.textContent = explained(error);
    trouble.hidden = false;
  }
}

function explained(error) {
  if (error.status !== 401) return error.message;
  showSettings(true);
  key.focus();
  return "This server wants an API key. Enter it under Settings.";
}

// Settings

function showSettings(isShown) {
  settings.hidden = !isShown;
  element("settings-button").setAttribute("aria-expanded", String(isShown));
}

function parameters() {
  const given = [...settings.querySelectorAll("input[name]")].filter((input) => input.value !== "");
  return Object.fromEntries(given.map((input) => [input.name, input.valueAsNumber]));
}

const stored = () => settings.querySelectorAll("input, textarea, select");

function keepSettings() {
  sessionStorage.setItem("settings", JSON.stringify([...stored()].map((input) => input.value)));
}

function restoreSettings() {
  const values = JSON.parse(sessionStorage.getItem("settings") ?? "[]");
  [...stored()].forEach((input, i) => (input.value = values[i] ?? ""));
}

// Privacy

/** Shows the choice where it is seen without opening the settings, once it matters. */
function showPrivacy() {
  nothingLeaves.checked = privacy.value === "never";
  privacyBar.hidden = !nothingLeaves.checked && !isRouted;
  if (nothingLeaves.checked) withdrawConsent();
}

/** Nothing is asked any more about earlier answers. */
function withdrawConsent() {
  for (const section of conversation.querySelectorAll(".consent")) section.hidden = true;
}

// Questions and answers

function show(template) {
  const article = element(template).content.firstElementChild.cloneNode(true);
  element("greeting").hidden = true;
  conversation.append(article);
  conversation.scrollTop = conversation.scrollHeight;
  return article;
}

/** A change at the end of the conversation, which stays in view if it was. */
function change(draw) {
  const isAtEnd = conversation.scrollHeight - conversation.scrollTop - conversation.clientHeight < 80;
  draw();
  if (isAtEnd) conversation.scrollTop = conversation.scrollHeight;
}

function askQuestion(text) {
  if (messages.at(-1)?.role === "user") messages.pop(); // it got no answer
  show("question-template").querySelector(".text").textContent = text;
  messages.push({role: "user", content: text});
  answer();
}

/** One more answer; or, after a person's consent, one to a request that was made before. */
async function answer(body = request(), consent = "") {
  withdrawConsent();
  for (const button of conversation.querySelectorAll(".again")) button.hidden = true; // only the last answer can be had again
  const article = show("answer-template");
  const view = new AnswerView(article);
  running = new AbortController();
  showRunning(true);
  const begin = performance.now();
  try {
    for await (const chunk of chat(body, key.value, running.signal, {privacy: privacy.value, consent})) {
      view.take(chunk, performance.now() - begin);
    }
    view.end(view.figures());
  } catch (error) {
    if (error.name === "AbortError") {
      view.end("stopped");
    } else if (error instanceof ServerError) {
      view.end("", explained(error));
    } else {
      throw error;
    }
  } finally {
    running = null;
    showRunning(false);
    if (view.text) messages.push({role: "assistant", content: view.text});
    const replace = (body, consent) => again(article, Boolean(view.text), body, consent);
    article.querySelector(".again").onclick = () => replace();
    const question = view.told?.consent;
    if (question && privacy.value !== "never") askConsent(article, question, () => replace(body, question.id));
    showModels();
  }
}

function request() {
  const spoken = system.value.trim() ? [{role: "system", content: system.value}, ...messages] : [...messages];
  return {model: model.value, messages: spoken, ...parameters()};
}

function again(article, wasSaid, body, consent) {
  article.remove();
  if (wasSaid) messages.pop();
  answer(body, consent);
}

/** Asks whether the cloud may be asked. Nothing is sent unless a person says yes, in time. */
function askConsent(article, question, agree) {
  const section = article.querySelector(".consent");
  change(() => {
    section.hidden = false;
    section.querySelector("p").textContent = consentText(question);
  });
  section.querySelector(".yes").onclick = agree;
  section.querySelector(".no").onclick = () => (section.hidden = true);
  setTimeout(() => (section.hidden = true), question.expires_s * 1000);
}

function showRunning(isRunning) {
  send.hidden = isRunning;
  stop.hidden = !isRunning;
  model.disabled = isRunning;
  element("new-chat").disabled = isRunning;
}

/** An answer on the page, drawn at most once per frame. */
class AnswerView {
  constructor(article) {
    this.article = article;
    this.text = "";
    this.usage = null;
    this.firstMs = null;
    this.reason = null;
    this.told = null; // by a router: who answers
    this.isDrawing = false;
    article.classList.add("is-running");
  }

  part(name) {
    return this.article.querySelector(`.${name}`);
  }

  take(chunk, ms) {
    if (chunk.usage) this.usage = chunk.usage;
    const [choice] = chunk.choices;
    if (chunk.edgelm) this.takeRoute(chunk.edgelm);
    if (choice?.finish_reason) this.reason = choice.finish_reason;
    if (!choice?.delta.content) return;
    this.firstMs ??= ms;
    this.text += choice.delta.content;
    this.drawSoon();
  }

  takeRoute(told) {
    if (told.restart) {
      this.part("restart").textContent = takenBack(this.told.route, told);
      this.text = "";
      this.drawSoon();
    }
    this.told = told;
    change(() => showRoute(this.part("route"), told));
  }

  drawSoon() {
    if (!this.isDrawing) requestAnimationFrame(() => this.draw());
    this.isDrawing = true;
  }

  draw() {
    this.isDrawing = false;
    change(() => (this.part("text").innerHTML = markdown.render(this.text)));
  }

  end(figures, error = "") {
    this.draw();
    change(() => {
      this.article.classList.remove("is-running");
      this.part("figures").textContent = figures;
      this.part("error").textContent = error;
      this.part("error").hidden = !error;
      this.part("copy").hidden = !(this.text && navigator.clipboard); // which browsers give to https and this machine only
      this.part("again").hidden = false;
    });
    this.part("copy").onclick = () => navigator.clipboard.writeText(this.text);
  }

  figures() {
    if (!this.usage) return "";
    const {completion_tokens: n, prompt_tokens_details: prompt, timings} = this.usage;
    const speed = timings.tokens_per_second;
    return [
      `${n} ${n === 1 ? "token" : "tokens"}`,
      speed && `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`,
      this.firstMs !== null && `first after ${(this.firstMs / 1000).toFixed(2)} s`,
      prompt.cached_tokens > 0 && `${prompt.cached_tokens} of ${this.usage.prompt_tokens} prompt tokens from the cache`,
      this.reason === "length" && "cut off at the bound of tokens",
    ].filter(Boolean).join(" · ");
  }
}

// What a person does

composer.onsubmit = (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (running || !text) return;
  showSettings(!settings.checkValidity());
  if (!settings.reportValidity()) return;
  question.value = "";
  askQuestion(text);
};
question.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
};
document.onkeydown = (event) => {
  if (event.key === "Escape") running?.abort();
};
stop.onclick = () => running?.abort();
element("settings-button").onclick = () => showSettings(settings.hidden);
element("new-chat").onclick = () => {
  messages = [];
  for (const article of conversation.querySelectorAll("article")) article.remove();
  element("greeting").hidden = false;
  question.focus();
};
settings.onsubmit = (event) => event.preventDefault();
settings.onchange = () => {
  keepSettings();
  showPrivacy();
};
nothingLeaves.onchange = () => {
  privacy.value = nothingLeaves.checked ? "never" : "";
  settings.onchange();
};
key.onchange = showModels;

restoreSettings();
showPrivacy();
showModels();
