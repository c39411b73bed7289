// This file owns the page: what is drawn of a frame.
import { el, svg, text, className, list, stream } from './dom.js';
import { number, count, size, duration, since, clock, printable, bytes, parse } from './format.js';

const byID = id => document.getElementById(id);
const views = [];

stream('events', data => {
  const frame = parse(data);
  frame.replicas.forEach((status, i) => {
    if (!views[i]) {
      views[i] = replicaView(i);
      byID('replicas').append(views[i].root);
    }
    views[i].draw(status, frame.more[i], frame);
  });
  text(byID('ready'), frame.ready.ready ? 'ready' : 'not ready');
  className(byID('ready'), 'pill ' + (frame.ready.ready ? 'good' : 'warn'));
  byID('missing').hidden = frame.ready.ready;
  list(byID('missing'), frame.ready.missing ?? [], line => el('div', '', printable(line)));
  text(byID('as-of'), 'as of ' + clock(frame.at));
  document.title = frame.replicas.map(s => nameOf(s)).join(', ');
}, on => {
  text(byID('live'), on ? 'live' : 'no connection, trying again');
  className(byID('live'), 'live ' + (on ? 'on' : 'off'));
});

const nameOf = s => s.name ? printable(s.name) : s.id.slice(0, 8);
const stamp = v => `${v.clock}·${String(v.origin).slice(0, 4)}`;
const fullStamp = v => `clock ${v.clock}, origin ${v.origin}`;

function titled(e, title) {
  e.title = title;
  return e;
}

function tile(title) {
  const big = el('div', 'big'), small = el('div', 'soft');
  return { root: el('div', 'card tile', el('h3', '', title), big, small), big, small };
}

function panel(title, empty) {
  const items = el('ul', 'list'), none = el('div', 'soft', empty), count = el('span', 'soft');
  const root = el('section', 'card', el('h3', '', title + ' ', count), none, items);
  return {
    root, count,
    draw(all, one) {
      none.hidden = all.length > 0;
      list(items, all, one);
    },
  };
}

function replicaView(index) {
  const name = el('h2'), state = el('span', 'pill'), facts = el('div', 'facts'), problem = el('div', 'notice');
  const sync = el('button', '', 'Sync now'), synced = el('span', 'soft said');
  const keys = tile('Keys'), log = tile('Change log'), disk = tile('On disk'), commits = tile('Commits');
  const known = tile('Clock'), fought = tile('Conflicts');
  const adoption = progress('Adopting the keys that were here before');
  const peers = el('section', 'card peers');
  const changes = panel('Latest changes', 'None yet. What a first sync brings is not listed.');
  const conflicts = panel('Conflicts', 'None since this database was opened.');
  const warnings = panel('Warnings', 'None since this database was opened.');
  const refused = panel('Refused connections', 'None since this database was opened.');
  const rows = new Map(), left = el('div', ''), right = el('div', '', warnings.root, refused.root);
  const root = el('section', 'replica',
    el('div', 'who', name, state, el('span', 'space'), synced, sync, facts), problem,
    el('div', 'tiles', keys.root, log.root, disk.root, commits.root, known.root, fought.root),
    adoption.root, peers, el('div', 'panels', left, right));
  sync.onclick = () => syncNow(index, sync, synced);

  function draw(s, more, frame) {
    text(name, nameOf(s));
    const [word, kind] = s.closed ? ['closed', 'bad'] : s.failed ? ['refuses writes', 'bad'] : ['open', 'good'];
    text(state, word);
    className(state, 'pill ' + kind);
    list(facts, [
      ['id', s.id.slice(0, 8), s.id], ['epoch', String(s.epoch).slice(0, 8), s.epoch],
      ['fingerprint', s.fingerprint ? s.fingerprint.sum.slice(0, 8) : 'not known yet', 'of all live keys and their stamps: equal on replicas that hold the same'],
      ['listens on', s.listening ? printable(s.listening) : 'nothing, dials only'], ['opened', clock(s.opened)],
    ], ([what, value, all]) => titled(el('span', '', what + ' ', el('code', '', value)), all ?? ''));
    problem.hidden = !s.failed || s.closed;
    text(problem, 'Writes are refused until the database is reopened: ' + printable(s.failed));
    sync.hidden = !frame.actions || s.closed;
    className(root, 'replica' + (s.closed ? ' is-closed' : ''));

    text(keys.big, more.count ? (more.count.atLeast ? '> ' : '') + number(more.count.keys) : '…');
    text(keys.small, more.count ? number(more.count.tombstones) + ' deleted' : 'being counted');
    text(log.big, number(s.logRecords));
    text(log.small, s.logRecords ? `sequences ${number(s.floor)} to ${number(s.head)}` : 'head ' + number(s.head));
    const all = more.sizes ? more.sizes.data + more.sizes.extra : 0;
    text(disk.big, !more.sizes ? 'closed' : all ? size(all) : 'journal only');
    text(disk.small, !more.sizes ? '' : all ? `${size(more.sizes.extra)} of it log and index` : 'no tables yet');
    const speed = percentiles(s.commits);
    text(commits.big, speed ? '≤ ' + duration(speed.half) : 'none');
    text(commits.small, speed ? 'the median; 99 % ' + (speed.most ? '≤ ' + duration(speed.most) : 'more') : 'since the opening');
    text(known.big, number(s.clock));
    text(known.small, 'vector ' + s.vector.sum.slice(0, 8));
    known.root.title = `The vector ${s.vector.sum} has ${count(s.vector.origins, 'origin')}. Replicas with equal vectors know the same changes.`;
    text(fought.big, number(s.conflicts.count));
    text(fought.small, s.conflicts.uncertain ? number(s.conflicts.uncertain) + ' of them uncertain' : 'since the opening');

    adoption.root.hidden = s.adoption.done && !s.adoption.lastError;
    adoption.draw(s.adoption.done ? 1 : null, `${number(s.adoption.adopted)} adopted, ${number(s.adoption.skipped)} too large` +
      (s.adoption.lastError ? '; ' + printable(s.adoption.lastError) : ''));

    drawPeers(index, peers, rows, s, frame);

    if (!left.firstChild) {
      left.append(frame.data ? changes.root : conflicts.root);
      if (frame.data) right.prepend(conflicts.root);
    }
    changes.draw([...more.changes].reverse(), drawChange);
    text(conflicts.count, s.conflicts.count ? number(s.conflicts.count) : '');
    conflicts.draw([...s.conflicts.last].reverse(), drawConflict);
    warnings.draw([...s.warnings].reverse(), w => el('li', '', el('span', 'when', clock(w.at)), el('bdi', '', printable(w.text))));
    refused.root.hidden = !s.refused;
    refused.draw(s.refused ?? [], r => el('li', '', el('span', 'when', clock(r.last)), el('b', '', printable(r.host)), ` ${number(r.count)} × `,
      el('bdi', '', printable(r.error))));
  }
  return { root, draw };
}

function drawChange(c) {
  const what = c.version.deleted ? el('span', 'gone', 'deleted')
    : el('bdi', 'value', c.value === null ? 'a large value' : bytes(c.value) + (c.size > 128 ? '…' : ''));
  return el('li', 'change', el('span', 'pill ' + (c.local ? 'good' : ''), c.local ? 'local' : 'merged'),
    el('span', '', el('bdi', 'key', bytes(c.key)), ' ', what), titled(el('span', 'stamp', stamp(c.version)), fullStamp(c.version)));
}

function drawConflict(c) {
  const one = v => titled(el('span', 'stamp', (v.deleted ? 'deletion ' : '') + stamp(v)), fullStamp(v));
  const why = c.won.clock !== c.lost.clock ? 'its clock is greater' : 'equal clocks, its origin is greater';
  return el('li', '', c.key ? el('bdi', 'key', bytes(c.key)) : 'a key', ': ', one(c.won), ' won over ', one(c.lost), `: ${why}. `,
    el('span', 'soft', (c.lostHere ? 'What was here lost.' : 'What arrived lost.') + (c.uncertain ? ' Uncertain.' : '')));
}

function progress(title) {
  const bar = el('i'), track = el('div', 'track', bar), note = el('span', 'soft');
  return {
    root: el('div', 'progress', el('span', '', title + ': ', note), track),
    draw(share, words) { // null: unknown
      text(note, words);
      className(track, 'track' + (share === null ? ' unknown' : ''));
      bar.style.width = share === null ? '' : (share * 100).toFixed(1) + '%';
    },
  };
}

// percentiles returns the buckets in which the median and the 99th of a hundred are.
function percentiles(buckets) {
  const all = buckets.reduce((n, b) => n + b.count, 0);
  const at = share => {
    let n = 0;
    for (const b of buckets) if ((n += b.count) >= all * share) return b.upTo;
  };
  return all ? { half: at(.5), most: at(.99) } : null;
}

function drawPeers(index, root, rows, s, frame) {
  if (!root.firstChild) {
    root.append(el('div', 'peer head', ...['Peer', 'State', 'Behind here', 'Not there yet', 'Last contact', 'Traffic, last minute'].map(t => el('div', '', t))));
    root.append(el('div', 'peer none', el('div', 'soft wide', 'This replica has no peers.')));
  }
  root.querySelector('.none').hidden = s.peers.length > 0;
  const here = new Set();
  for (const p of s.peers) {
    const key = (p.configured ? 'to ' : 'from ') + (p.configured ? p.addr : p.id);
    here.add(key);
    if (!rows.has(key)) {
      rows.set(key, peerRow(index));
      root.append(rows.get(key).root);
    }
    rows.get(key).draw(p, frame);
  }
  for (const [key, row] of rows) {
    if (here.has(key)) continue;
    row.root.remove();
    rows.delete(key);
  }
}

const kinds = { 'in sync': 'good', 'waiting': 'bad', 'incomplete': 'bad', 'stale': 'bad', 'self': '', 'read-only': '' };

function peerRow(index) {
  const cell = (label, ...children) => el('div', '', el('span', 'label', label), ...children);
  const name = el('bdi', 'name'), addr = el('div', 'sub'), state = el('span', 'pill'), side = el('div', 'sub');
  const behind = el('span'), lag = el('div', 'sub'), ahead = el('span'), durable = el('div', 'sub');
  const contact = el('span'), trip = el('div', 'sub'), compare = el('button', 'small', 'Compare'), found = el('div', 'wide sub'), error = el('div', 'wide error'), scan = progress('Scan');
  const graph = trafficGraph(), whole = el('div', 'wide', scan.root);
  const who = cell('Peer', name, ' ', compare, addr), traffic = cell('Traffic, last minute', graph.root);
  who.classList.add('who-cell');
  traffic.classList.add('traffic-cell');
  const root = el('div', 'peer', who, cell('State', state, side), cell('Behind here', behind, lag),
    cell('Not there yet', ahead, durable), cell('Last contact', contact, trip), traffic, whole, error, found);
  let peer = '';
  compare.title = 'Read both sides, and find the keys in which they differ';
  compare.onclick = () => run('compare?' + new URLSearchParams({ replica: index, peer }), compare, found, 'comparing', o => difference(o));
  return {
    root,
    draw(p, frame) {
      const now = frame.at;
      peer = p.configured ? p.addr : p.id;
      compare.hidden = !frame.actions || !p.dialedBy;
      found.hidden = found.textContent === '';
      text(name, p.name ? printable(p.name) : printable(p.addr));
      text(addr, [p.name ? printable(p.addr) : '', p.id ? p.id.slice(0, 8) : 'never reached', p.configured ? '' : 'dialled in',
        p.sameAs ? 'same as ' + printable(p.sameAs) : ''].filter(Boolean).join(' · '));
      addr.title = [p.id, ...Object.entries(p.meta ?? {}).map(([k, v]) => printable(k + '=' + v))].filter(Boolean).join('\n');
      text(state, p.state);
      className(state, 'pill ' + (kinds[p.state] ?? 'warn'));
      const access = (p.access === 'read-only' ? ', may only read here' : '') + (p.granted === 'read-only' ? ', lets us only read' : '');
      text(side, (p.dialedBy ? 'dialled by ' + p.dialedBy : p.nextAttempt ? 'next attempt ' + clock(p.nextAttempt) : 'no session') + access);
      text(behind, p.behind === null ? 'unknown' : p.behind === 0 ? 'nothing' : count(p.behind, 'record'));
      text(lag, p.lag === null ? '' : p.lag === 0 ? 'no lag' : 'for ' + duration(p.lag));
      text(ahead, p.unmerged === null ? 'unknown' : p.unmerged === 0 ? 'nothing' : count(p.unmerged, 'record'));
      text(durable, p.unconfirmed === null ? '' : p.unconfirmed === 0 ? 'all durable' : number(p.unconfirmed) + ' not durable');
      text(contact, since(p.lastSuccess, now));
      text(trip, p.roundTrip === null ? '' : 'round trip ' + duration(p.roundTrip));
      whole.hidden = !p.scan;
      if (p.scan) {
        scan.draw(p.scan.done, p.scan.inKeyOrder ? 'all keys, in their order' + (p.scan.key ? ', up to ' + bytes(p.scan.key) : '')
          : (p.scan.done * 100).toFixed(0) + ' % of what is new in the log');
      }
      error.hidden = !p.lastError || p.dialedBy !== undefined;
      text(error, printable(p.lastError ?? ''));
      graph.draw(p, now);
    },
  };
}

// trafficGraph shows the rates of a minute, a bar for each second: what came above the
// axis, what went below.
function trafficGraph() {
  const bars = 60, width = 120, height = 34, middle = height / 2;
  const came = svg('path', { class: 'area-in' }), went = svg('path', { class: 'area-out' });
  const picture = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': 'traffic of the last minute' },
    svg('line', { class: 'axis', x1: 0, x2: width, y1: middle, y2: middle }), came, went);
  const down = el('div', 'in'), up = el('div', 'out');
  const seconds = []; // { at, in, out } bytes a second
  let last = null;
  return {
    root: el('div', 'traffic', picture, el('div', 'rates', down, up)),
    draw(p, now) {
      const at = Date.parse(now);
      if (last && at - last.at < 950) return;
      if (last) {
        const passed = (at - last.at) / 1000;
        seconds.push({ in: Math.max(0, p.bytesIn - last.in) / passed, out: Math.max(0, p.bytesOut - last.out) / passed });
        if (seconds.length > bars) seconds.shift();
      }
      last = { at, in: p.bytesIn, out: p.bytesOut };
      const most = Math.max(200, ...seconds.flatMap(s => [s.in, s.out]));
      const path = (of, way) => seconds.map((s, i) => {
        const x = (bars - seconds.length + i) * width / bars, h = Math.min(middle - 1, s[of] / most * (middle - 1));
        return h < .3 ? '' : `M${x.toFixed(1)} ${middle}v${(way * h).toFixed(1)}h1.6v${(-way * h).toFixed(1)}z`;
      }).join('');
      came.setAttribute('d', path('in', -1));
      went.setAttribute('d', path('out', 1));
      const rate = seconds.at(-1) ?? { in: 0, out: 0 };
      text(down, '↓ ' + size(Math.round(rate.in)) + '/s');
      text(up, '↑ ' + size(Math.round(rate.out)) + '/s');
      picture.parentNode.title = `received ${number(p.recordsIn)} records, ${size(p.bytesIn)}; sent ${number(p.recordsOut)} records, ${size(p.bytesOut)}`;
    },
  };
}

const syncNow = (index, button, result) => run('sync?replica=' + index, button, result, 'syncing', o => `everything was here after ${duration(o.took)}`);

function difference(o) {
  const d = o.difference;
  if (d.equal) return `equal, found in ${duration(o.took)}`;
  const sample = (d.sample ?? []).slice(0, 5).map(bytes).join(', ');
  return `${count(d.keys, 'key')} differ: ${number(d.laterHere)} later here, ${number(d.laterThere)} later there` + (sample ? `; such as ${sample}` : '');
}

// run has the server do something, and says how long it has been at it, and what came of it.
async function run(action, button, result, doing, done) {
  const began = Date.now();
  button.disabled = true;
  const tick = setInterval(() => text(result, `${doing}, ${((Date.now() - began) / 1000).toFixed(0)} s`), 500);
  try {
    const response = await fetch(action, { method: 'POST' });
    if (!response.ok) throw new Error(await response.text());
    const outcome = await response.json();
    text(result, outcome.error ? printable(outcome.error) : done(outcome));
  } catch (e) {
    text(result, printable(e.message));
  } finally {
    clearInterval(tick);
    button.disabled = false;
  }
}
