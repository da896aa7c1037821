// Answers to DOM nodes: the part of Markdown that chat models write most. A model's text is put into text nodes only;
// it never becomes HTML, an address or an attribute. Work grows with the text's length, whatever the text is.

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([\w+#.-]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(\S.*)$/;
const ITEM = /^( {0,12})(?:([-*+])|(\d{1,9})[.)]) +(\S.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const RULE = /^ {0,3}(?:-{3,}|\*{3,}|_{3,}) *$/;

/** Show `text` in `container`, leaving the blocks alone that are there already: a stream changes only the last. */
export function show(container, text) {
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const source = JSON.stringify(block);
    const old = container.children[index];
    if (old && shown.get(old) === source) return;
    const node = nodeOf(block);
    shown.set(node, source);
    if (old) old.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > wanted.length) container.lastElementChild.remove();
}

const shown = new WeakMap();

function blocks(text) {
  const found = [];
  let fence = null;
  for (const line of text.replace(/\r\n?/g, "\n").split("\n")) {
    const last = found[found.length - 1];
    if (fence) {
      const end = FENCE.exec(line.trimEnd());
      if (end && !end[2] && end[1].startsWith(fence)) fence = null;
      else last.lines.push(line);
      continue;
    }
    const begin = FENCE.exec(line.trimEnd());
    const heading = HEADING.exec(line);
    const item = ITEM.exec(line);
    const quote = QUOTE.exec(line);
    if (begin) {
      fence = begin[1];
      found.push({ kind: "code", name: begin[2], lines: [] });
    } else if (!line.trim()) {
      found.push({ kind: "gap" });
    } else if (heading) {
      found.push({ kind: "heading", level: heading[1].length, lines: [heading[2]] });
    } else if (RULE.test(line)) {
      found.push({ kind: "rule" });
    } else if (item) {
      addItem(found, item);
    } else if (quote) {
      addLine(found, "quote", quote[1]);
    } else if (last && last.kind === "list" && line.startsWith("  ")) {
      last.items[last.items.length - 1].lines.push(line.trim());
    } else {
      addLine(found, "text", line);
    }
  }
  return found.filter((block) => block.kind !== "gap");
}

function addLine(found, kind, line) {
  const last = found[found.length - 1];
  if (last && last.kind === kind) last.lines.push(line);
  else found.push({ kind, lines: [line] });
}

function addItem(found, [, indent, bullet, number, text]) {
  const isOrdered = !bullet;
  const level = Math.min(3, Math.floor(indent.length / 2));
  let last = found[found.length - 1];
  // A blank line between the items of a list does not end it.
  if (last && last.kind === "gap") last = found[found.length - 2];
  if (last && last.kind === "list" && (last.isOrdered === isOrdered || level > 0)) {
    if (found[found.length - 1].kind === "gap") found.pop();
  } else {
    last = { kind: "list", isOrdered, items: [] };
    found.push(last);
  }
  last.items.push({ level, mark: isOrdered ? `${number}.` : "•", lines: [text] });
}

function nodeOf(block) {
  if (block.kind === "code") return codeNode(block);
  if (block.kind === "rule") return document.createElement("hr");
  if (block.kind === "list") return listNode(block);
  const tag = { heading: `h${Math.min(6, (block.level || 0) + 2)}`, quote: "blockquote", text: "p" }[block.kind];
  const node = document.createElement(tag);
  addInline(node, block.lines.join("\n"));
  return node;
}

function codeNode({ name, lines }) {
  const node = document.createElement("figure");
  const head = document.createElement("figcaption");
  head.append(name);
  const pre = document.createElement("pre");
  pre.tabIndex = 0; // wide code is scrolled with the keyboard, too
  const code = document.createElement("code");
  code.append(lines.join("\n"));
  pre.append(code);
  node.append(head, pre);
  return node;
}

function listNode({ isOrdered, items }) {
  const list = document.createElement(isOrdered ? "ol" : "ul");
  for (const { level, mark, lines } of items) {
    const item = document.createElement("li");
    item.dataset.level = level;
    item.dataset.mark = mark;
    addInline(item, lines.join("\n"));
    list.append(item);
  }
  return list;
}

/** `code`, **strong** and *emphasis*; a marker without its partner is text. */
function addInline(parent, text, depth = 0) {
  const ended = new Set(); // markers that do not come again: each is looked for in vain only once
  let plain = "";
  let at = 0;
  while (at < text.length) {
    const marker = depth < 3 ? markerAt(text, at) : "";
    const from = at + marker.length;
    const end = marker && !ended.has(marker) ? text.indexOf(marker, from) : -1;
    if (marker && end < 0) ended.add(marker);
    if (end <= from || !isSpan(text, marker, at, end)) {
      plain += marker || text[at];
      at = from + (marker ? 0 : 1);
      continue;
    }
    parent.append(plain);
    plain = "";
    const node = document.createElement(marker[0] === "`" ? "code" : marker === "**" ? "strong" : "em");
    if (marker[0] === "`") node.append(text.slice(from, end));
    else addInline(node, text.slice(from, end), depth + 1);
    parent.append(node);
    at = end + marker.length;
  }
  parent.append(plain);
}

function markerAt(text, at) {
  if (text[at] === "*") return text[at + 1] === "*" ? "**" : "*";
  let end = at;
  while (text[end] === "`" && end - at < 8) end += 1;
  return text.slice(at, end);
}

function isSpan(text, marker, at, end) {
  if (marker[0] === "`") return true;
  const isTight = !/\s/.test(text[at + marker.length]) && !/\s/.test(text[end - 1]);
  return isTight && (marker === "**" || !/\w/.test(text[at - 1] || " ")); // 2*3*4 is a product
}
