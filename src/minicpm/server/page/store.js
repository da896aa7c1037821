// What the browser keeps: the conversation and the settings until they are cleared, the API key until the tab is closed.

export const OPTIONS = ["temperature", "top_p", "repetition_penalty", "max_tokens"];

const CHAT = "minicpm.chat";
const SETTINGS = "minicpm.settings";
const KEY = "minicpm.key";

/** The turns kept here: [{role, content, note}], user and model in turns; [] where something else was found. */
export function loadChat() {
  const found = read(CHAT);
  const isTurn = (turn, index) =>
    turn && turn.role === ["user", "assistant"][index % 2] && typeof turn.content === "string";
  if (!Array.isArray(found) || found.length % 2 || !found.every(isTurn)) return [];
  return found.map(({ role, content, note }) => ({ role, content, note: typeof note === "object" ? note : null }));
}

export function saveChat(turns) {
  return turns.length ? write(CHAT, turns) : remove(CHAT);
}

/** {system, language, theme, temperature, ...}, all of them strings. */
export function loadSettings() {
  const found = read(SETTINGS) || {};
  const names = ["system", "language", "theme", ...OPTIONS];
  return Object.fromEntries(names.map((name) => [name, typeof found[name] === "string" ? found[name] : ""]));
}

export function saveSettings(settings) {
  return write(SETTINGS, settings);
}

export function loadKey() {
  try {
    return sessionStorage.getItem(KEY) || "";
  } catch {
    return "";
  }
}

export function saveKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // The page still has it until it is left.
  }
}

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

/** Whether the browser took it: it may be full, or allow none. */
function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function remove(name) {
  try {
    localStorage.removeItem(name);
  } catch {
    // Nothing could be kept, so nothing is there.
  }
  return true;
}
