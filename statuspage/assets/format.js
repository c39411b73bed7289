// This file owns how figures and bytes become text.

const whole = new Intl.NumberFormat('en');

export const number = n => n === null || n === undefined ? 'unknown' : whole.format(n);

export function size(n) {
  for (const [unit, of] of [['B', 1], ['kB', 1e3], ['MB', 1e6], ['GB', 1e9]]) {
    if (n < of * 1000 || unit === 'GB') return (of === 1 ? n : (n / of).toFixed(n / of < 10 ? 1 : 0)) + ' ' + unit;
  }
}

// duration takes nanoseconds.
export function duration(ns) {
  if (ns === null || ns === undefined) return 'unknown';
  const s = ns / 1e9;
  if (ns === 0) return '0';
  if (s < 1e-3) return (s * 1e6).toFixed(0) + ' µs';
  if (s < 1) return (s * 1e3).toFixed(s < .01 ? 1 : 0) + ' ms';
  if (s < 90) return s.toFixed(s < 10 ? 1 : 0) + ' s';
  if (s < 5400) return (s / 60).toFixed(0) + ' min';
  if (s < 172800) return (s / 3600).toFixed(1) + ' h';
  return (s / 86400).toFixed(0) + ' days';
}

// since says how long ago a time was, by the clock of the server.
export function since(time, now) {
  if (!time) return 'never';
  const ms = Date.parse(now) - Date.parse(time);
  return ms < 1500 ? 'now' : duration(ms * 1e6) + ' ago';
}

export const count = (n, one) => number(n) + ' ' + one + (n === 1 ? '' : 's');

export function clock(time) {
  const t = new Date(time);
  const today = t.toDateString() === new Date().toDateString();
  return (today ? '' : t.toLocaleDateString() + ' ') + t.toLocaleTimeString([], { hourCycle: 'h23' });
}

// printable shows what could not be seen, or would turn the text around.
export const printable = text => String(text).replace(/[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff]/g,
  c => '\\u' + c.codePointAt(0).toString(16).padStart(4, '0'));

// bytes shows base64 as text, or as escapes where it is none.
export function bytes(base64) {
  const raw = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
  try {
    return printable(new TextDecoder('utf-8', { fatal: true }).decode(raw));
  } catch {
    return Array.from(raw, b => b > 31 && b < 127 ? String.fromCharCode(b) : '\\x' + b.toString(16).padStart(2, '0')).join('');
  }
}

// parse reads JSON. Numbers that a browser cannot hold stay text.
export const parse = text => JSON.parse(text, (_, value, context) =>
  typeof value === 'number' && Number.isInteger(value) && !Number.isSafeInteger(value) && context ? context.source : value);
