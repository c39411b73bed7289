// This file owns the page of the demonstration.
import { el, svg, text, className, list, stream } from './status/dom.js';
import { number, duration, clock, printable, parse } from './status/format.js';

const byID = id => document.getElementById(id);
const reduced = matchMedia('(prefers-reduced-motion: reduce)');

let shown = null; // the state that is on the page

stream('events', data => {
  const state = parse(data);
  draw(state);
  shown = state;
}, on => {
  text(byID('live'), on ? 'live' : 'no connection, trying again');
  className(byID('live'), 'live ' + (on ? 'on' : 'off'));
});

// ask has the demonstration do something, and says so if it could not.
async function ask(what, fields) {
  let problem = '';
  try {
    const response = await fetch('do/' + what, { method: 'POST', body: new URLSearchParams(fields) });
    if (!response.ok) problem = await response.text();
  } catch (e) {
    problem = e.message;
  }
  text(byID('problem'), printable(problem.trim()));
  return problem === '';
}

const of = server => 'of-' + (server < 0 ? 'none' : server);

// chip shows a stamp: the clock, and who made the change.
function chip(stamp) {
  const e = el('span', 'chip ' + of(stamp.server), String(stamp.clock), el('b', '', stamp.server < 0 ? '?' : String(stamp.server + 1)));
  e.title = `stamp: clock ${stamp.clock}, origin ${stamp.origin}` +
    (stamp.server < 0 ? '' : ` (drawn by server ${stamp.server + 1} when it was opened)`);
  return e;
}

byID('conflict').onclick = () => shown?.pending ? ask('links', { cut: false }) : ask('conflict', {});
byID('links').onclick = () => ask('links', { cut: !anyCut(shown) });
byID('load').onclick = () => ask('load', { on: !shown?.load });
const anyCut = state => state?.links.some(l => l.cut);

const servers = [0, 1, 2].map(serverView);
byID('servers').append(...servers.map(s => s.root));
const network = networkView();

function draw(state) {
  text(byID('conflict'), state.pending ? 'Heal, and see who wins' : 'Make a conflict');
  className(byID('conflict'), 'main' + (state.pending ? ' second' : ''));
  text(byID('links'), anyCut(state) ? 'Heal all links' : 'Cut all links');
  text(byID('load'), state.load ? 'Stop the load' : 'Start a load');
  const closed = state.servers.filter(s => !s.open).length;
  const [word, kind] = !state.equal ? [`${state.differ} ${state.differ === 1 ? 'key differs' : 'keys differ'}`, 'warn']
    : [closed === 0 ? 'all three are equal' : closed === 1 ? 'both that are open are equal' : closed === 2 ? 'one is open' : 'none is open', closed ? '' : 'good'];
  text(byID('equal'), word);
  className(byID('equal'), 'pill ' + kind);
  servers.forEach((view, i) => view.draw(state, i));
  network.draw(state);

  byID('no-conflict').hidden = state.conflicts.length > 0;
  list(byID('conflict-list'), state.conflicts, drawFight);
  list(byID('feed'), state.feed, drawEvent);
}

function drawFight(c) {
  const side = (cell, verdict) => el('div', `side ${verdict} ${of(cell.stamp.server)}`, el('span', 'verdict', verdict === 'won' ? 'won' : 'lost'),
    el('bdi', 'value', cell.deleted ? 'deleted' : printable(cell.value)), chip(cell.stamp));
  const name = cell => cell.stamp.server < 0 ? 'The other one' : 'Server ' + (cell.stamp.server + 1);
  const short = origin => String(origin).slice(0, 4) + '…';
  const why = c.won.stamp.clock !== c.lost.stamp.clock
    ? [el('b', '', `${c.won.stamp.clock} is more than ${c.lost.stamp.clock}. `), `${name(c.won)} had made or seen more changes.`]
    : [el('b', '', `Both clocks were ${c.won.stamp.clock}. `), 'So the greater origin wins, a random number of each opening: ',
      el('code', '', short(c.won.stamp.origin)), ' is above ', el('code', '', short(c.lost.stamp.origin)), '.'];
  const fresh = Date.now() - Date.parse(c.at) < 3000 ? ' fresh' : '';
  return el('div', 'fight' + fresh, el('div', 'title', el('span', '', 'key ', el('b', '', printable(c.key))), el('span', '', clock(c.at))),
    side(c.won, 'won'), side(c.lost, 'lost'), el('div', 'why', ...why));
}

function drawEvent(e) {
  const when = el('span', 'when', clock(e.at));
  if (!e.cell) return el('li', 'said', when, el('span', '', printable(e.text)));
  const has = el('span', 'has', ...e.has.map((yes, i) => el('b', `${of(i)}${yes ? ' yes' : ''}`, String(i + 1))));
  has.title = 'the servers that have it';
  const what = el('span', 'what', el('span', 'soft', printable(e.key) + (e.cell.deleted ? ' ' : ' = ')), e.cell.deleted ? 'deleted' : printable(e.cell.value));
  return el('li', e.lost ? 'lost' : '', when, what, el('span', '', chip(e.cell.stamp), ' ', has));
}

function serverView(i) {
  const facts = el('span', 'soft'), rows = el('div', 'rows');
  const key = el('input'), value = el('input'), put = el('button', '', 'Put');
  Object.assign(key, { placeholder: 'key', maxLength: 40, ariaLabel: `key on server ${i + 1}`, autocomplete: 'off', spellcheck: false });
  Object.assign(value, { placeholder: 'value', maxLength: 40, ariaLabel: `value on server ${i + 1}`, autocomplete: 'off', spellcheck: false });
  const form = el('form', 'put', key, value, put);
  form.onsubmit = async event => {
    event.preventDefault();
    if (key.value === '') return key.focus();
    if (!await ask('put', { server: i, key: key.value, value: value.value })) return;
    form.reset();
    key.focus();
  };
  const button = (what, label, title) => {
    const b = el('button', what, label);
    b.title = title;
    b.onclick = async () => {
      b.disabled = true;
      await ask('operate', { server: i, what });
      b.disabled = false;
    };
    return b;
  };
  const open = button('open', 'Open', 'Open it again');
  const close = button('close', 'Close', 'Close it: the others go on, and it catches up later');
  const wipe = button('wipe', 'Wipe', 'Remove all of its data: it starts as a new replica');
  const copy = button('copy', 'Copy', 'Copy its directory, as a backup');
  const restore = button('restore', 'Restore', '');
  const root = el('section', 'card server ' + of(i), el('header', '', el('h2', '', 'Server ' + (i + 1)), facts), form, rows,
    el('footer', '', open, close, wipe, copy, restore));
  root.id = 'server-' + (i + 1);
  const cells = new Map();

  function draw(state) {
    const s = state.servers[i];
    className(root, `card server ${of(i)}${s.open ? '' : ' closed'}`);
    text(facts, s.open ? `${number(s.keys)} keys · clock ${number(s.clock)}` : 'closed');
    facts.title = `id ${s.id}\nopening ${s.epoch}\n${s.addr}\n${s.log} records in the log`;
    open.hidden = s.open;
    close.hidden = !s.open;
    put.disabled = !s.open;
    restore.disabled = !s.copied;
    restore.title = s.copied ? `Go back to the copy of ${clock(s.copied)}: the others notice, and bring it up to date` : 'There is no copy of it yet';
    const here = new Set(state.rows.map(r => r.key));
    for (const [k, row] of cells) {
      if (here.has(k)) continue;
      row.root.remove();
      cells.delete(k);
    }
    let before = null;
    for (const r of state.rows) {
      if (!cells.has(r.key)) cells.set(r.key, rowView(r.key));
      const row = cells.get(r.key);
      row.draw(r.cells[i], r.differ, s.open);
      const next = before ? before.nextSibling : rows.firstChild;
      if (next !== row.root) rows.insertBefore(row.root, next);
      before = row.root;
    }
  }

  function rowView(name) {
    const content = el('bdi', 'value'), erase = el('button', 'erase', '×');
    erase.title = `delete ${printable(name)} on server ${i + 1}`;
    const row = el('div', 'row', el('bdi', 'key', printable(name)), content, el('span', 'chip'), erase);
    row.firstChild.title = printable(name);
    row.dataset.key = name;
    row.onclick = () => {
      key.value = name;
      value.focus();
    };
    erase.onclick = event => {
      event.stopPropagation();
      ask('delete', { server: i, key: name });
    };
    let last = '';
    return {
      root: row,
      draw(cell, differ, isOpen) {
        const now = JSON.stringify(cell);
        const isNew = last !== '' && last !== now && isOpen;
        if (last !== now) {
          text(content, cell === null ? '–' : cell.deleted ? 'deleted' : printable(cell.value));
          content.title = content.textContent;
          row.children[2].replaceWith(cell ? chip(cell.stamp) : el('span', 'chip'));
          row.children[2].hidden = cell === null;
          erase.hidden = cell === null || cell.deleted;
          last = now;
        }
        const state = `row ${cell ? of(cell.stamp.server) : 'missing'}${cell?.deleted ? ' gone' : ''}${differ && isOpen ? ' differ' : ''}`;
        if (isNew && !name.startsWith('visits/')) {
          row.className = state;
          void row.offsetWidth; // so that the animation begins again
          row.className = state + ' fresh';
        } else {
          className(row, row.classList.contains('fresh') ? state + ' fresh' : state);
        }
      },
    };
  }
  return { root, draw };
}

function networkView() {
  const root = byID('network');
  const picture = svg('svg', { 'aria-hidden': 'true' });
  const wires = [0, 1, 2].map(() => svg('path', { class: 'wire' }));
  const stems = [0, 1, 2].map(i => svg('path', { class: 'stem ' + of(i) }));
  const dots = svg('g', {});
  picture.append(...stems, ...wires, dots);
  const nodes = [0, 1, 2].map(i => el('div', 'node ' + of(i), String(i + 1)));
  const boxes = [0, 1, 2].map(n => {
    const button = el('button'), note = el('div', 'soft');
    button.onclick = () => ask('link', { link: n, cut: !shown.links[n].cut });
    return { root: el('div', 'linkbox', button, note), button, note };
  });
  root.append(picture, ...nodes, ...boxes.map(b => b.root));

  // The second node stands lower, so that the third link passes above it.
  function place() {
    const w = root.clientWidth, h = root.clientHeight, small = w < 620;
    const r = small ? 22 : 29;
    const side = small ? h / 2 - 12 : h - r - 46;
    const at = [[w / 6, side], [w / 2, h - r - 6], [5 * w / 6, side]];
    nodes.forEach((n, i) => { n.style.left = at[i][0] + 'px'; n.style.top = at[i][1] + 'px'; });
    stems.forEach((s, i) => s.setAttribute('d', `M${at[i]} V${h + 20}`));
    const top = small ? 22 : 26, lift = 2 * top - (at[0][1] + at[2][1]) / 2;
    wires[0].setAttribute('d', `M${at[0]} L${at[1]}`);
    wires[1].setAttribute('d', `M${at[1]} L${at[2]}`);
    wires[2].setAttribute('d', `M${at[0]} Q${[w / 2, lift]} ${at[2]}`);
    const middle = [[(at[0][0] + at[1][0]) / 2, (at[0][1] + at[1][1]) / 2], [(at[1][0] + at[2][0]) / 2, (at[1][1] + at[2][1]) / 2], [w / 2, top]];
    boxes.forEach((b, n) => { b.root.style.left = middle[n][0] + 'px'; b.root.style.top = middle[n][1] + 'px'; });
  }
  new ResizeObserver(place).observe(root);
  place();

  // travel moves a dot over a wire, in the colour of the server that sent.
  function travel(n, from, back) {
    if (reduced.matches || document.hidden) return;
    const wire = wires[n], length = wire.getTotalLength(), dot = svg('circle', { r: 6, class: 'dot' });
    dot.style.fill = `var(--s${from})`;
    dots.append(dot);
    const began = performance.now();
    const step = now => {
      const share = Math.min(1, (now - began) / 650);
      const p = wire.getPointAtLength(length * (back ? 1 - share : share));
      dot.setAttribute('cx', p.x);
      dot.setAttribute('cy', p.y);
      if (share < 1) requestAnimationFrame(step);
      else dot.remove();
    };
    requestAnimationFrame(step);
  }

  function draw(state) {
    state.servers.forEach((s, i) => className(nodes[i], `node ${of(i)}${s.open ? '' : ' closed'}`));
    state.links.forEach((l, n) => {
      const [a, b] = l.ends, closed = !state.servers[a].open || !state.servers[b].open;
      className(wires[n], 'wire' + (l.cut ? ' cut' : l.up ? '' : ' down'));
      className(boxes[n].root, 'linkbox' + (l.cut ? ' cut' : ''));
      text(boxes[n].button, l.cut ? 'Heal' : 'Cut');
      boxes[n].button.title = `${l.cut ? 'Heal' : 'Cut'} the link between server ${a + 1} and server ${b + 1}`;
      const behind = Math.max(l.behind[0] ?? 0, l.behind[1] ?? 0);
      text(boxes[n].note, l.cut ? 'cut' : closed ? 'closed' : !l.up ? 'connecting' : behind ? `${number(behind)} behind` : 'in sync');
      boxes[n].root.title = l.up ? `server ${l.dialledBy + 1} dialled; round trip ${duration(l.roundTrip)}` : '';
      const before = shown?.links[n].carried;
      if (!before || !l.up) return;
      if (l.carried[1] > before[1]) travel(n, a, false);
      if (l.carried[0] > before[0]) travel(n, b, true);
    });
  }
  return { draw };
}
