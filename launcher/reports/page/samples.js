'use strict';
// The page of `longreel data show`. Numbers lie in typed arrays; each filter owns one bit of `fails`, so a filter that
// moves judges its own column alone; only the rows in sight are in the document.

const OVER = 4;          // rows kept beyond each edge of the view
const TALLEST = 15e6;    // pixels; browsers refuse higher elements, so beyond it scrolling is scaled
const CUT = 400;         // characters of a caption in a row
const SETTLE = 60;       // ms without scrolling before new sheets are fetched
const $ = id => document.getElementById(id);
const D = JSON.parse($('data').textContent);
const N = D.uid.length;

const make = (tag, kind = '', text = '') => {
  const el = document.createElement(tag);
  if (kind) el.className = kind;
  if (text) el.textContent = text;
  return el;
};
const svg = (tag, kind) => {
  const el = document.createElementNS('http://www.w3.org/2000/svg', tag);
  if (kind) el.setAttribute('class', kind);
  return el;
};
const count = n => n.toLocaleString('en');
const digits = v => String(Number(v.toPrecision(4)));
const label = name => name.replaceAll('_', ' ');

function bytes(v) {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; v >= 1024 && unit < 4; unit++) v /= 1024;
  return `${unit ? Number(v.toPrecision(3)) : v} ${units[unit]}`;
}

function duration(s) {
  if (s < 100) return `${Number(s.toPrecision(3))} s`;
  s = Math.round(s);
  if (s < 3600) return `${s / 60 | 0} min ${s % 60} s`;
  return `${count(s / 3600 | 0)} h ${(s % 3600) / 60 | 0} min`;
}

const figures = D.figures.map((f, bit) => {
  const values = Float64Array.from(f.values, v => v === null ? NaN : v);
  const last = Math.max(1, f.edges.length - 1);  // bins
  const bins = new Uint8Array(N).fill(255);
  const lows = new Float64Array(last).fill(Infinity), highs = new Float64Array(last).fill(-Infinity);
  const all = new Uint32Array(last);
  let known = 0;
  for (let i = 0; i < N; i++) {
    const v = values[i];
    if (v !== v) continue;
    const b = bins[i] = binOf(f.edges, last, v);
    all[b]++, known++;
    if (v < lows[b]) lows[b] = v;
    if (v > highs[b]) highs[b] = v;
  }
  const least = lows.find(v => v < Infinity), most = highs.findLast(v => v > -Infinity), kept = new Uint32Array(last);
  return {...f, bit, values, bins, lows, highs, least, most, all, known, last, kept, range: null};
});
const named = new Map(figures.map(f => [f.name, f]));

function binOf(edges, last, v) {
  let a = 0, b = last;
  while (b - a > 1) {
    const middle = (a + b) >> 1;
    if (edges[middle] <= v) a = middle; else b = middle;
  }
  return a;
}

const facets = D.facets.map((f, k) => ({
  ...f, codes: Int32Array.from(f.codes), chosen: new Set(), bit: figures.length + k, kept: new Uint32Array(f.names.length),
}));
const WORDS = figures.length + facets.length;  // the bit of the search
const fails = new Uint32Array(N);  // per sample, a bit for each filter that refuses it
const state = {q: '', sort: '', falling: false, open: -1};

function judge(bit, passes) {
  const one = 1 << bit, rest = ~one;
  for (let i = 0; i < N; i++) fails[i] = passes(i) ? fails[i] & rest : fails[i] | one;
}

function setRange(f, range) {  // null, 'none', or [low, high], both included
  f.range = range;
  const {values} = f;
  if (!range) judge(f.bit, () => true);
  else if (range === 'none') judge(f.bit, i => values[i] !== values[i]);
  else {
    const [low, high] = range;
    judge(f.bit, i => values[i] >= low && values[i] <= high);
  }
}

function setChosen(f, names) {
  f.chosen = new Set(names.map(n => f.names.indexOf(n)).filter(code => code >= 0));
  const {chosen, codes} = f;
  judge(f.bit, names.length ? i => chosen.has(codes[i]) : () => true);
}

let hay = null, starts = null;  // all texts as one lower-case string, and where each sample begins in it
function haystack() {
  const texts = new Array(N);
  starts = new Uint32Array(N + 1);
  for (let i = 0, at = 0; i < N; i++) {
    const long = D.caption_long.length ? D.caption_long[i] : '';
    texts[i] = `${D.caption[i]}\n${long}\n${D.file.names[D.file.codes[i]]}\n${D.uid[i]}\u0001`.toLowerCase();
    starts[i + 1] = at += texts[i].length;
  }
  hay = texts.join('');
}

function found(term) {  // 1 for each sample whose text has it
  const hits = new Uint8Array(N);
  for (let at = hay.indexOf(term), i = 0; at >= 0; at = hay.indexOf(term, starts[i])) {
    let step = 1;
    while (i + step < N && starts[i + step] <= at) i += step, step *= 2;
    while (step >= 1) {
      if (i + step < N && starts[i + step] <= at) i += step;
      step >>= 1;
    }
    hits[i++] = 1;
    if (i >= N) break;
  }
  return hits;
}

function setWords(text) {
  state.q = text;
  const terms = [...text.toLowerCase().matchAll(/(-?)(?:"([^"]*)"?|(\S+))/g)]
    .map(m => [m[1] === '-', m[2] ?? m[3]]).filter(t => t[1]);
  if (!terms.length) return judge(WORDS, () => true);
  if (!hay) haystack();
  const tests = terms.map(([not, term]) => [not ? 0 : 1, found(term)]);
  judge(WORDS, i => tests.every(([wanted, hits]) => hits[i] === wanted));
}

const orders = new Map([['', Int32Array.from({length: N}, (_, i) => i)]]);
function order() {
  const f = named.get(state.sort), key = f ? `${state.falling ? '-' : ''}${state.sort}` : '';
  if (!orders.has(key)) {
    const {values} = f, sign = state.falling ? -1 : 1;
    const has = [], lacks = [];
    for (let i = 0; i < N; i++) (values[i] === values[i] ? has : lacks).push(i);
    has.sort((a, b) => sign * (values[a] - values[b]) || a - b);
    orders.set(key, Int32Array.from(has.concat(lacks)));
  }
  return orders.get(key);
}

const shown = new Int32Array(N);
let many = 0;  // how many of `shown` count
function select() {
  const by = order();
  const reversed = state.falling && !state.sort;
  many = 0;
  for (let k = 0; k < N; k++) {
    const i = by[reversed ? N - 1 - k : k];
    if (!fails[i]) shown[many++] = i;
  }
  for (const f of figures) tally(f.kept, f.bins, ~(1 << f.bit), 255);
  for (const f of facets) tally(f.kept, f.codes, ~(1 << f.bit), -1);
}

function tally(kept, codes, others, none) {  // what all other filters let through
  kept.fill(0);
  for (let i = 0; i < N; i++) if (!(fails[i] & others) && codes[i] !== none) kept[codes[i]]++;
}

function total(name) {
  const f = named.get(name);
  let sum = 0;
  if (f) for (let k = 0; k < many; k++) sum += f.values[shown[k]] || 0;
  return sum;
}

function filtered() {
  return Boolean(state.q.trim() || figures.some(f => f.range) || facets.some(f => f.chosen.size));
}

function refresh() {
  select();
  $('count').replaceChildren(make('b', '', count(many)), ` of ${count(N)}`, make('i', '', ' shown'));
  const parts = [duration(total('seconds')), bytes(total('bytes'))];
  $('count').title = `${parts.join(', ')} of video and images`;
  $('reset').disabled = !filtered() && !state.sort && !state.falling;
  for (const draw of drawn) draw();
  list.scrollTop = 0;
  current = -1;
  writeHash();
  render(true);
}
