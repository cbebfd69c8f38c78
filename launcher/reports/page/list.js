// The samples: rows of one height, so which are in sight is arithmetic; those that leave are filled anew.

const list = $('list'), rows = $('rows');
let columns = 1, high = 70, wide = 0, current = -1;
const live = new Map();  // position in `shown` -> row
const spare = [];
const loaded = new Set(), broken = new Set();
let waiting = 0;

function layout() {
  const room = list.clientWidth;
  columns = Math.max(1, Math.floor(room / 1000));
  wide = Math.floor(room / columns);
  const beside = wide >= 1000 || D.bare, halves = !beside && wide < 560;
  document.body.classList.toggle('under', !beside);
  document.body.classList.toggle('halves', halves);
  document.body.classList.toggle('bare', D.bare);
  const strip = Math.min(768, wide - 32);
  const picture = beside ? 54 : halves ? strip * 108 / 384 : strip * 54 / 768;
  high = Math.ceil(beside ? 70 : picture + 6 + 54 + 16);
  render(true);
}

function geometry() {
  const lines = Math.ceil(many / columns), full = lines * high, tall = Math.min(full, TALLEST), view = list.clientHeight;
  return {lines, tall, view, scale: full > tall ? (full - view) / (tall - view) : 1};
}

function render(anew = false) {
  const {lines, tall, view, scale} = geometry();
  rows.style.height = `${tall}px`;
  const y = list.scrollTop * scale, shift = list.scrollTop - y;
  const first = Math.max(0, Math.floor(y / high) - OVER) * columns;
  const stop = Math.min(many, Math.min(lines, Math.ceil((y + view) / high) + OVER) * columns);
  for (const [at, row] of live) {
    if (at < first || at >= stop) {
      live.delete(at);
      row.el.hidden = true;
      spare.push(row);
    }
  }
  for (let at = first; at < stop; at++) {
    let row = live.get(at);
    if (!row) {
      row = spare.pop() || newRow();
      live.set(at, row);
      row.el.hidden = false;
    }
    if (row.sample !== shown[at] || anew) fill(row, shown[at], at);
    const top = Math.floor(at / columns) * high + shift;
    row.el.style.transform = `translate(${at % columns * wide}px,${top}px)`;
  }
  $('nothing').hidden = many > 0;
  if (live.size && [...live.values()].some(row => row.wanted)) {
    clearTimeout(waiting);
    waiting = setTimeout(() => { for (const row of live.values()) attach(row); }, SETTLE);
  }
}

function newStrip() {
  const el = make('div', 'strip'), blank = make('div', 'blank');
  const images = [0, 1].map(() => {
    const half = make('div', 'half'), image = new Image();
    image.alt = '';
    image.decoding = 'async';
    image.draggable = false;
    half.append(image);
    el.append(half);
    return image;
  });
  el.append(blank);
  return {el, images, blank};
}

function show(strip, sample, now) {  // whether its sheet is still to be fetched
  const sheet = D.sheet.codes[sample], url = sheet < 0 ? '' : D.previews + encodeURIComponent(D.sheet.names[sheet]);
  strip.url = url;
  strip.blank.textContent = url && !broken.has(url) ? '' : D.frames[sample] ? 'no preview' : 'text alone';
  strip.el.classList.toggle('empty', Boolean(strip.blank.textContent));
  for (const image of strip.images) {
    image.style.top = `${-100 * D.strip[sample]}%`;
    image.hidden = !url || broken.has(url);
    if (image.hidden) image.removeAttribute('src');
    else if (now || loaded.has(url)) {
      if (image.getAttribute('src') !== url) image.src = url;
    } else image.removeAttribute('src');
    image.onload = () => loaded.add(url);
    image.onerror = () => {
      broken.add(url);
      if (strip.url === url) show(strip, sample, false);
    };
  }
  return Boolean(url) && !now && !loaded.has(url) && !broken.has(url);
}

function attach(row) {
  if (row.wanted) row.wanted = show(row.strip, row.sample, true);
}

function newRow() {
  const el = make('div', 'row'), strip = newStrip(), words = make('div', 'words');
  const short = make('span', 'short'), long = make('span', 'long'), facts = make('span', 'facts');
  for (const text of [short, long]) text.dir = 'auto';
  words.append(short, long, facts);
  el.append(strip.el, words);
  el.setAttribute('role', 'option');
  const row = {el, strip, short, long, facts, sample: -1, at: -1, wanted: false};
  el.onclick = () => { point(row.at); openAt(row.at); };
  rows.append(el);
  return row;
}

function fill(row, sample, at) {
  const same = row.sample === sample;
  row.sample = sample, row.at = at;
  row.el.style.width = `${wide}px`;
  row.el.style.height = `${high}px`;
  row.el.id = `at-${at}`;
  row.el.setAttribute('aria-posinset', at + 1);
  row.el.setAttribute('aria-setsize', many);
  row.el.setAttribute('aria-selected', at === current);
  if (!same || row.wanted) row.wanted = show(row.strip, sample, false);
  const long = D.caption_long.length ? D.caption_long[sample] : '';
  row.short.textContent = D.caption[sample].slice(0, CUT) || '(no caption)';
  row.short.classList.toggle('soft', !D.caption[sample]);
  row.short.classList.toggle('two', !long);
  row.long.textContent = long.slice(0, CUT);
  row.long.hidden = !long;
  row.facts.replaceChildren(...facts(sample));
}

function facts(i) {
  const said = [], by = named.get(state.sort);
  if (by) said.push(make('b', '', by.values[i] === by.values[i] ? `${label(by.name)} ${written(by, by.values[i])}` : `no ${label(by.name)}`));
  if (D.frames[i] > 1) {
    const seconds = value('seconds', i);
    said.push(`${count(D.frames[i])} frames`);
    if (seconds === seconds) said.push(duration(seconds));
  }
  if (D.frames[i]) said.push(`${D.width[i]} × ${D.height[i]}`);
  said.push(make('bdi', '', D.file.names[D.file.codes[i]]));
  return said.flatMap((part, k) => k ? [' · ', part] : [part]);
}

function value(name, i) {
  const f = named.get(name);
  return f ? f.values[i] : NaN;
}

function point(at) {  // the one that keys act on
  live.get(current)?.el.setAttribute('aria-selected', false);
  current = Math.max(0, Math.min(many - 1, at));
  const {view, scale} = geometry();
  const top = Math.floor(current / columns) * high, y = list.scrollTop * scale;
  if (top < y) list.scrollTop = top / scale;
  else if (top + high > y + view) list.scrollTop = (top + high - view) / scale;
  render();
  live.get(current)?.el.setAttribute('aria-selected', true);
  list.setAttribute('aria-activedescendant', `at-${current}`);
}
