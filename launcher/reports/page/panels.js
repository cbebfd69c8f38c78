// The filters on the left: a histogram to brush for each figure, a list of names for each facet.

const drawn = [];  // what to draw anew when the selection changes

function heading(box, name, unit, clear) {
  const head = make('h2', '', label(name)), button = make('button', 'clear', 'clear');
  button.onclick = () => { clear(); refresh(); };
  button.setAttribute('aria-label', `clear ${label(name)}`);
  head.append(make('span', 'unit', unit), button);
  head.title = unit;
  box.append(head);
}

const HIGH = 38, SIDE = 480;
function path(counts, most) {  // heights are square roots: a bin of one in thousands can still be seen
  const wide = SIDE / counts.length;
  let d = '';
  counts.forEach((n, b) => {
    if (!n) return;
    const tall = Math.max(1.5, HIGH * Math.sqrt(n / most));
    d += `M${(b * wide).toFixed(1)} ${HIGH}v${-tall.toFixed(1)}h${(wide - 1.5).toFixed(1)}V${HIGH}z`;
  });
  return d;
}

function figurePanel(f) {
  const box = make('section', 'facet');
  heading(box, f.name, f.unit === label(f.name) ? '' : f.unit, () => setRange(f, null));
  const ends = make('div', 'ends');
  if (f.least === f.most) {
    ends.append(`${written(f, f.least)} in all`);
    box.append(ends);
    f.only = true;
  } else {
    const picture = svg('svg', 'bars'), all = svg('path', 'all'), kept = svg('path', 'kept'), brush = svg('rect', 'brush');
    picture.setAttribute('viewBox', `0 0 ${SIDE} ${HIGH}`);
    picture.setAttribute('preserveAspectRatio', 'none');
    picture.setAttribute('aria-hidden', 'true');
    const most = Math.max(...f.all);
    all.setAttribute('d', path(f.all, most));
    brush.setAttribute('height', HIGH);
    picture.append(brush, all, kept);
    const inputs = [['from', f.least], ['to', f.most]].map(([word, v]) => {
      const input = make('input');
      input.placeholder = written(f, v);
      input.inputMode = 'decimal';
      input.setAttribute('aria-label', `${label(f.name)} ${word}`);
      input.onchange = () => typed(f, inputs);
      return input;
    });
    ends.append(inputs[0]);
    lacking(f, ends);
    ends.append(inputs[1]);
    box.append(picture, ends);
    drag(picture, f);
    drawn.push(() => {
      kept.setAttribute('d', path(f.kept, most));
      const range = Array.isArray(f.range) ? f.range : null;
      const [a, b] = range ? binsOf(f, range) : [0, 0];
      brush.setAttribute('x', a * SIDE / f.last);
      brush.setAttribute('width', range ? (b + 1 - a) * SIDE / f.last : 0);
      inputs.forEach((input, side) => { input.value = range && isFinite(range[side]) ? String(range[side]) : ''; });
      box.classList.toggle('on', Boolean(f.range));
    });
  }
  if (f.only) {
    lacking(f, ends);
    drawn.push(() => box.classList.toggle('on', Boolean(f.range)));
  }
  return box;
}

function written(f, v) {
  return f.name === 'bytes' ? bytes(v) : f.whole ? count(v) : digits(v);
}

function lacking(f, ends) {
  if (f.known === N) return;
  const button = make('button', 'lacks', `${count(N - f.known)} without`);
  button.title = `show the ${count(N - f.known)} samples that have none`;
  button.onclick = () => { setRange(f, f.range === 'none' ? null : 'none'); refresh(); };
  drawn.push(() => button.setAttribute('aria-pressed', f.range === 'none'));
  ends.append(button);
}

function typed(f, inputs) {
  const [low, high] = inputs.map(input => input.value.trim() === '' ? NaN : Number(input.value.replaceAll(',', '')));
  const range = [low === low ? low : -Infinity, high === high ? high : Infinity];
  setRange(f, range.some(isFinite) ? range : null);
  refresh();
}

function binsOf(f, [low, high]) {
  return [binOf(f.edges, f.last, low), binOf(f.edges, f.last, high)];
}

function rangeOf(f, a, b) {  // from the least value in bins a .. b to the largest
  let low = Infinity, high = -Infinity;
  for (let k = a; k <= b; k++) low = Math.min(low, f.lows[k]), high = Math.max(high, f.highs[k]);
  if (low > high) [low, high] = [f.edges[a], f.edges[b + 1]];
  return [a ? low : -Infinity, b < f.last - 1 ? high : Infinity];
}

function drag(picture, f) {
  const hover = svg('title');
  picture.append(hover);
  let from = null, grip = null;  // the bin where it began; the brush then, if it is moved as a whole
  const at = event => {
    const box = picture.getBoundingClientRect();
    return Math.max(0, Math.min(f.last - 1, Math.floor((event.clientX - box.left) / box.width * f.last)));
  };
  const set = (a, b) => {
    setRange(f, a <= 0 && b >= f.last - 1 ? null : rangeOf(f, a, b));
    refresh();
  };
  picture.onpointerdown = event => {
    if (event.button) return;
    event.preventDefault();
    picture.setPointerCapture(event.pointerId);
    const b = at(event), was = Array.isArray(f.range) ? binsOf(f, f.range) : null;
    grip = was && b > was[0] && b < was[1] ? was : null;
    from = was && b === was[0] && was[1] > b ? was[1] : was && b === was[1] && was[0] < b ? was[0] : b;
    if (!grip && from === b && !was) set(b, b);
  };
  picture.onpointermove = event => {
    const b = at(event);
    hover.textContent = `${written(f, f.edges[b])} to ${written(f, f.edges[b + 1])}: ${count(f.kept[b])} of ${count(f.all[b])}`;
    if (from === null) return;
    if (grip) {
      const by = Math.max(-grip[0], Math.min(f.last - 1 - grip[1], b - from));
      set(grip[0] + by, grip[1] + by);
    } else set(Math.min(from, b), Math.max(from, b));
  };
  picture.onpointerup = picture.onpointercancel = event => {
    if (from !== null && !grip && from === at(event) && Array.isArray(f.range)) set(from, from);
    from = null;
  };
  picture.ondblclick = () => { setRange(f, null); refresh(); };
}

function facetPanel(f) {
  const box = make('section', 'facet'), list = make('div', 'names');
  heading(box, f.name, f.unit, () => setChosen(f, []));
  const lines = f.names.map((name, code) => {
    const line = make('label'), input = make('input'), n = make('span', 'n');
    input.type = 'checkbox';
    input.onchange = () => {
      const names = f.names.filter((_, c) => c === code ? input.checked : f.chosen.has(c));
      setChosen(f, names);
      refresh();
    };
    const word = make('span', 'name', name);
    word.title = name;
    line.append(input, word, n);
    list.append(line);
    return {line, input, n};
  });
  box.append(list);
  drawn.push(() => {
    lines.forEach(({line, input, n}, code) => {
      input.checked = f.chosen.has(code);
      n.textContent = count(f.kept[code]);
      line.classList.toggle('zero', !f.kept[code]);
    });
    box.classList.toggle('on', f.chosen.size > 0);
  });
  return box;
}
