// The chat page: one conversation with the server this page came from.

import { AnswerError, answer, modelName } from "./answer.js";
import { show } from "./markdown.js";
import { loadChat, loadKey, loadSettings, OPTIONS, saveChat, saveKey, saveSettings } from "./store.js";
import { LANGUAGES, speak, word } from "./words.js";

const THEMES = ["", "light", "dark"]; // "": what the system says
const NUDGE = 40; // pixels from the end of the conversation that still count as being there

const element = (id) => document.getElementById(id);
const settings = loadSettings();
let turns = loadChat();
let cleared = []; // what Clear took, until the next question
let running = null; // the answer that is being written: {question, note, text, node, abort}

// --- The conversation ------------------------------------------------------------------------------------------

/** Ask `question`; where no answer comes at all, `before` is shown again instead of losing it. */
async function ask(question, before = null) {
  cleared = [];
  const kept = turns;
  add("user", question);
  running = { text: "", node: add("assistant", ""), abort: new AbortController(), note: { tokens: 0 } };
  element("welcome").hidden = true;
  running.node.setAttribute("aria-busy", "true"); // a screen reader waits for the whole answer
  scrollToEnd();
  say(word("thinking"));
  update();
  let failure = null;
  try {
    await write(running, [...kept, { role: "user", content: question }]);
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof AnswerError)) console.error(error);
    failure = error;
  }
  const { text, node, note } = running;
  running = null;
  if (failure) note.end = failure.name === "AbortError" ? "stopped" : "broken";
  if (text) {
    turns = [...kept, { role: "user", content: question }, { role: "assistant", content: text, note }];
    finish(node, text, note);
  } else {
    turns = before ? [...kept, ...before] : kept;
    if (!before) giveBack(question);
    render();
  }
  say(failure && failure.name !== "AbortError" ? failure.message : "", Boolean(failure));
  if (failure && failure.status === 401) askForKey();
  keep();
}

async function write(run, conversation) {
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  const messages = [...system, ...conversation].map(({ role, content }) => ({ role, content }));
  let first = 0;
  for await (const event of answer({ messages, ...numbers() }, loadKey(), run.abort.signal)) {
    const choice = event.choices?.[0];
    const piece = choice?.delta?.content;
    if (piece) {
      if (!run.text) say(word("writing"));
      first ||= performance.now();
      run.text += piece;
      run.note.tokens += 1;
      measure(run.note, first);
      draw(run);
    }
    if (choice?.finish_reason === "length") run.note.end = "cut";
    if (event.usage) {
      run.note.tokens = event.usage.completion_tokens;
      measure(run.note, first);
    }
  }
}

/** Tokens a second from the first piece on, which itself took as long as the prompt. A millisecond is no measurement. */
function measure(note, first) {
  const seconds = (performance.now() - first) / 1000;
  if (first && note.tokens > 1 && seconds >= 0.001) note.rate = (note.tokens - 1) / seconds;
}

function numbers() {
  const given = OPTIONS.filter((name) => settings[name] !== "").map((name) => [name, Number(settings[name])]);
  return Object.fromEntries(given);
}

function undo() {
  if (running || !turns.length) return;
  const [question] = turns.slice(-2);
  turns = turns.slice(0, -2);
  giveBack(question.content);
  keep();
  render();
  say("");
}

function regenerate() {
  if (running || !turns.length) return;
  const before = turns.slice(-2);
  turns = turns.slice(0, -2);
  render();
  ask(before[0].content, before);
}

function clear() {
  if (running || !turns.length) return;
  cleared = turns;
  turns = [];
  keep();
  render();
  say(word("cleared"), false, [word("restore"), restore]);
  element("question").focus();
}

function restore() {
  turns = cleared;
  cleared = [];
  keep();
  render();
  say("");
  element("question").focus();
}

/** Put a question back where it was typed, before what has been typed since. */
function giveBack(question) {
  const box = element("question");
  box.value = box.value.trim() ? `${question}\n\n${box.value}` : question;
  grow();
  box.focus();
}

function keep() {
  if (!saveChat(turns)) say(word("notKept"), true);
}

// --- What is seen ----------------------------------------------------------------------------------------------

function render() {
  element("log").replaceChildren();
  for (const { role, content, note } of turns) {
    const node = add(role, content);
    if (note) node.querySelector(".cost").textContent = described(note);
  }
  element("welcome").hidden = turns.length > 0;
  update();
  scrollToEnd();
}

function add(role, content) {
  const node = document.createElement("article");
  node.className = role;
  const name = document.createElement("h2");
  name.append(word(role === "user" ? "you" : "model"));
  const text = document.createElement("div");
  text.className = "text";
  if (role === "user") text.append(content);
  else show(text, content);
  node.append(name, text);
  if (role === "assistant") node.append(foot(node));
  element("log").append(node);
  addCodeButtons(text);
  return node;
}

/** Below an answer: its copy button, and what it cost. */
function foot(node) {
  const line = document.createElement("p");
  line.className = "note";
  const cost = document.createElement("span");
  cost.className = "cost";
  line.append(copyButton(() => contentOf(node)), cost);
  return line;
}

function contentOf(node) {
  if (running?.node === node) return running.text;
  return turns[[...element("log").children].indexOf(node)].content;
}

function copyButton(content) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.append(word("copy"));
  button.addEventListener("click", () => copy(content(), button));
  return button;
}

function addCodeButtons(text) {
  for (const head of text.getElementsByTagName("figcaption")) {
    if (head.lastElementChild) continue;
    head.append(copyButton(() => head.parentElement.querySelector("code").textContent));
  }
}

async function copy(content, button) {
  try {
    await navigator.clipboard.writeText(content);
  } catch {
    // Without HTTPS, in the local network, there is no clipboard object: the way of old.
    if (!copyBySelection(content)) return say(word("notCopied"), true);
  }
  button.textContent = word("copied");
  setTimeout(() => (button.textContent = word("copy")), 1500);
}

function copyBySelection(content) {
  const box = document.createElement("textarea");
  box.value = content;
  document.body.append(box);
  box.select();
  const isCopied = document.execCommand("copy");
  box.remove();
  return isCopied;
}

function described({ tokens, rate, end }) {
  const words = [word("tokens", tokens)];
  if (rate) words.push(word("speed", rate.toFixed(1)));
  if (end) words.push(word(end));
  return words.join(" · ");
}

let isDrawing = false;

/** At most once a frame, however fast the tokens come. */
function draw(run) {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    if (running !== run) return;
    fill(run.node, run.text, run.note);
  });
}

function finish(node, text, note) {
  fill(node, text, note);
  node.removeAttribute("aria-busy");
  update();
}

function fill(node, content, note) {
  const isAtEnd = atEnd();
  const text = node.querySelector(".text");
  show(text, content);
  addCodeButtons(text);
  node.querySelector(".cost").textContent = described(note);
  if (isAtEnd) scrollToEnd();
}

function atEnd() {
  const { scrollHeight, scrollTop, clientHeight } = element("scroller");
  return scrollHeight - scrollTop - clientHeight < NUDGE;
}

function scrollToEnd() {
  element("scroller").scrollTop = element("scroller").scrollHeight;
}

/** A sentence above the question; an error stays until the next. */
function say(sentence, isError = false, action = null) {
  const line = element("status");
  line.replaceChildren(sentence);
  line.className = isError && sentence ? "error" : "";
  if (!action) return;
  const button = document.createElement("button");
  button.type = "button";
  button.append(action[0]);
  button.addEventListener("click", action[1]);
  line.append(" ", button);
}

/** Buttons that would do nothing are off. */
function update() {
  const isRunning = running !== null;
  element("send").hidden = isRunning;
  element("stop").hidden = !isRunning;
  element("send").disabled = !element("question").value.trim();
  for (const id of ["regenerate", "undo", "clear"]) element(id).disabled = isRunning || !turns.length;
}

/** The box is as high as its text, up to what the style sheet allows. */
function grow() {
  const box = element("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
  update();
}

// --- Language, colours, settings -------------------------------------------------------------------------------

function chosenLanguage() {
  if (LANGUAGES.includes(settings.language)) return settings.language;
  return (navigator.language || "en").startsWith("zh") ? "zh" : "en";
}

function translate() {
  const language = chosenLanguage();
  speak(language);
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = word(node.dataset.text);
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = word(node.dataset.placeholder);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", word(node.dataset.label));
    if (node.tagName === "BUTTON") node.title = word(node.dataset.label);
  }
  const other = element("language");
  other.textContent = language === "zh" ? "EN" : "中文";
  other.lang = language === "zh" ? "en" : "zh";
  other.setAttribute("aria-label", language === "zh" ? "English" : "中文");
  element("examples").replaceChildren(...word("examples").map(exampleButton));
}

function exampleButton(question) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(question);
  button.addEventListener("click", () => running || ask(question));
  return button;
}

function dress() {
  document.documentElement.dataset.theme = settings.theme;
}

function keepSettings() {
  if (!saveSettings(settings)) say(word("notKept"), true);
}

function askForKey() {
  element("key-field").hidden = false;
  say(word("needsKey"), true);
  if (!element("settings").open) element("settings").showModal();
  element("key").focus();
}

async function introduce() {
  try {
    element("model").textContent = await modelName(loadKey());
  } catch (error) {
    if (error.status === 401) askForKey();
    else say(error instanceof AnswerError ? error.message : word("noSense", 200), true);
  }
}

function listen() {
  const question = element("question");
  element("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || running) return;
    question.value = "";
    grow();
    ask(text);
  });
  question.addEventListener("input", grow);
  question.addEventListener("keydown", (event) => {
    // While an input method composes, Enter chooses characters; on a touch keyboard it breaks the line.
    const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
    if (!sends || matchMedia("(pointer: coarse)").matches) return;
    event.preventDefault();
    element("composer").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running && !element("settings").open) running.abort.abort();
  });
  element("stop").addEventListener("click", () => running?.abort.abort());
  element("regenerate").addEventListener("click", regenerate);
  element("undo").addEventListener("click", undo);
  element("clear").addEventListener("click", clear);

  element("language").addEventListener("click", () => {
    settings.language = chosenLanguage() === "zh" ? "en" : "zh";
    keepSettings();
    translate();
    if (!running) render();
  });
  element("theme").addEventListener("click", () => {
    settings.theme = THEMES[(THEMES.indexOf(settings.theme) + 1) % THEMES.length];
    keepSettings();
    dress();
  });
  element("open-settings").addEventListener("click", () => element("settings").showModal());
  element("close-settings").addEventListener("click", () => element("settings").close());
  element("settings").addEventListener("close", () => question.focus());
  element("reset").addEventListener("click", () => {
    for (const name of ["system", ...OPTIONS]) settings[name] = element(name).value = "";
    keepSettings();
  });
  for (const name of ["system", ...OPTIONS]) {
    element(name).value = settings[name];
    element(name).addEventListener("input", () => {
      settings[name] = element(name).value;
      keepSettings();
    });
  }
  element("key").addEventListener("change", () => {
    saveKey(element("key").value.trim());
    say("");
    introduce();
  });
}

translate();
dress();
listen();
render();
update();
element("question").focus();
introduce();
