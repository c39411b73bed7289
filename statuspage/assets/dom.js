// This file owns how elements are made and changed. Text goes in as text, never as markup.

export function el(tag, className, ...children) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  e.append(...children.filter(c => c !== null && c !== undefined));
  return e;
}

export function svg(tag, attributes, ...children) {
  const e = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

// text changes an element only where needed, so that what a reader has marked stays.
export function text(e, t) {
  t = String(t);
  if (e.textContent !== t) e.textContent = t;
}

export function className(e, name) {
  if (e.getAttribute('class') !== name) e.setAttribute('class', name);
}

// list redraws a list where its items have changed.
export function list(e, items, draw) {
  const now = JSON.stringify(items);
  if (e.drawn === now) return;
  e.drawn = now;
  e.replaceChildren(...items.map(draw));
}

// stream calls take with what the server sends, and tell with whether it does.
export function stream(url, take, tell) {
  let source, heard = 0;
  const open = () => {
    source?.close();
    heard = Date.now();
    source = new EventSource(url);
    source.onmessage = event => { heard = Date.now(); take(event.data); tell(true); };
    source.onerror = () => tell(false);
  };
  open();
  // A browser gives up on some errors, and cannot see that nothing comes.
  setInterval(() => {
    const silent = Date.now() - heard;
    if (silent > 3000) tell(false);
    if (silent > 6000 || source.readyState === EventSource.CLOSED && silent > 1500) open();
  }, 1000);
}
