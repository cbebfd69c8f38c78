// The hash that says which samples are shown, the keys, and the beginning.

const RANGE = /^((?:[\d.]+(?:e[+-]?\d+)?)?)-((?:[\d.]+(?:e[+-]?\d+)?)?)$/;  // 2-5, 2-, -5
let wrote = location.hash;
function writeHash() {
  const p = new URLSearchParams();
  if (state.q.trim()) p.set('q', state.q);
  for (const f of figures) {
    if (f.range === 'none') p.set(f.name, 'none');
    else if (f.range) p.set(f.name, f.range.map(v => isFinite(v) ? v : '').join('-'));
  }
  for (const f of facets) for (const code of f.chosen) p.append(f.name, f.names[code]);
  if (state.sort || state.falling) p.set('sort', (state.falling ? '-' : '') + state.sort);
  if (state.open >= 0) p.set('open', D.uid[shown[state.open]]);
  const text = p.toString();
  if (text === wrote.slice(1)) return;
  wrote = text ? `#${text}` : '';
  try { history.replaceState(null, '', wrote || location.pathname + location.search); } catch { /* too many in a second */ }
}

function readHash() {
  const p = new URLSearchParams(location.hash.slice(1));
  wrote = location.hash;
  for (const f of figures) {
    const said = p.get(f.name), m = RANGE.exec(said || '');
    const range = said === 'none' ? said : m && (m[1] || m[2]) ? [m[1] ? +m[1] : -Infinity, m[2] ? +m[2] : Infinity] : null;
    if (String(range) !== String(f.range)) setRange(f, range);
  }
  for (const f of facets) setChosen(f, p.getAll(f.name));
  setWords(p.get('q') || '');
  $('q').value = state.q;
  const sort = p.get('sort') || '';
  state.falling = sort.startsWith('-');
  state.sort = named.has(sort.replace('-', '')) ? sort.replace('-', '') : '';
  showSort();
  const uid = p.get('open');
  refresh();
  const at = uid ? shown.subarray(0, many).indexOf(D.uid.indexOf(uid)) : -1;
  if (at >= 0) point(at), openAt(at);
  else if (dialog.open) dialog.close();
}

function showSort() {
  $('sort').value = state.sort;
  $('turn').textContent = state.falling ? '↓' : '↑';
  $('turn').setAttribute('aria-label', state.falling ? 'falling; turn to rising' : 'rising; turn to falling');
}

$('sort').append(new Option('as stored', ''), ...figures.filter(f => f.least !== f.most).map(f => new Option(label(f.name), f.name)));
$('sort').onchange = () => { state.sort = $('sort').value; refresh(); };
$('turn').onclick = () => { state.falling = !state.falling; showSort(); refresh(); };
let asked = 0;
$('q').oninput = () => {
  cancelAnimationFrame(asked);
  asked = requestAnimationFrame(() => { setWords($('q').value); refresh(); });
};
$('reset').onclick = () => {
  for (const f of figures) if (f.range) setRange(f, null);
  for (const f of facets) setChosen(f, []);
  setWords('');
  $('q').value = '';
  state.sort = '', state.falling = false;
  showSort();
  refresh();
};
$('panel').onclick = () => $('panel').setAttribute('aria-expanded', document.body.classList.toggle('panel'));

document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== 'checkbox';
  if (dialog.open) {
    const by = {ArrowLeft: -1, ArrowRight: 1, k: -1, j: 1}[event.key];
    if (by) step(by), event.preventDefault();
    return;
  }
  if (typing) {
    if (event.key === 'Escape' || (event.key === 'Enter' && event.target === $('q'))) list.focus();
    return;
  }
  const page = Math.max(1, Math.floor(list.clientHeight / high) - 1) * columns;
  const by = {ArrowDown: columns, ArrowUp: -columns, j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, PageDown: page, PageUp: -page,
    Home: -N, End: N}[event.key];
  if (event.key === '/') $('q').focus();
  else if (by && many) point(current < 0 ? (by > 0 && by < N ? 0 : current + by) : current + by);
  else if ((event.key === 'Enter' || event.key === ' ') && event.target === list && current >= 0) openAt(current);
  else return;
  event.preventDefault();
});

function about() {
  const whole = D.total === N ? '' : `${count(N)} of ${count(D.total)} samples are on this page, evenly spread over the dataset (${D.why})`;
  const seconds = named.get('seconds');
  let sum = 0;
  if (seconds) for (const v of seconds.values) sum += v || 0;
  const said = [whole || `${count(N)} samples`, ...(sum ? [`${duration(sum)} of video`] : [])];
  if (D.bare) said.push('no previews: prepare writes them, an imported dataset has none');
  $('said').textContent = said.join(' · ');
  $('said').classList.toggle('warn', Boolean(whole));
}

about();
const nothing = make('p', 'none', 'No sample passes all filters.');
nothing.id = 'nothing';
list.append(nothing);
const hint = make('p', 'hint');
for (const [key, word] of [['/', ' search  '], ['↑', ' '], ['↓', ' move  '], ['Enter', ' open  '], ['Esc', ' close']]) hint.append(make('kbd', '', key), word);
hint.append(make('br'), 'Drag over a histogram, or type its ends. Grey is the page, blue what the other filters leave; heights are square roots of counts.');
$('filters').append(...facets.map(facetPanel), ...figures.map(figurePanel), hint);
list.addEventListener('scroll', () => render(), {passive: true});
new ResizeObserver(layout).observe(list);
addEventListener('hashchange', () => { if (location.hash !== wrote) readHash(); });
layout();
readHash();
(window.requestIdleCallback || setTimeout)(() => { if (!hay) haystack(); });  // before the first search asks for it
