// One sample, large, with all that is known of it.

const dialog = $('detail');
function openAt(at) {
  const i = shown[at];
  state.open = at;
  $('place').textContent = `${count(at + 1)} of ${count(many)}`;
  $('before').disabled = at === 0;
  $('after').disabled = at === many - 1;
  $('large').replaceChildren(...large(i));
  if (!dialog.open) dialog.showModal(), dialog.focus();  // not the first button
  dialog.scrollTop = 0;
  writeHash();
}

function large(i) {
  const strip = newStrip(), parts = [strip.el];
  show(strip, i, true);
  const long = D.caption_long.length ? D.caption_long[i] : '';
  for (const [text, kind, tag] of [[D.caption[i], 'caption', ''], [long, 'caption more', 'long caption']]) {
    if (!text) continue;
    const p = make('div', kind, text), box = make('div');
    p.dir = 'auto';
    if (tag) box.append(make('span', 'tag', tag));
    box.append(p);
    parts.push(box);
  }
  if (!D.caption[i] && !long) parts.push(make('p', 'soft', '(no caption)'));
  const dl = make('dl'), add = (name, ...what) => {
    const box = make('div');
    box.append(make('dt', '', name));
    const dd = make('dd');
    dd.append(...what);
    box.append(dd);
    dl.append(box);
    return box;
  };
  for (const f of figures) if (f.values[i] === f.values[i]) add(f.unit === 'characters' ? `${label(f.name)}, characters` : label(f.name), written(f, f.values[i])).title = f.unit;
  if (D.frames[i]) add('width × height', `${D.width[i]} × ${D.height[i]}`);
  add('media', D.media.names[D.media.codes[i]] || 'text alone');
  if (D.phash.length && D.phash[i]) add('phash', D.phash[i]);
  add('file', D.file.names[D.file.codes[i]] || '-').className = 'wide';
  if (D.stop[i]) add('rows of the file', `${count(D.start[i])} to ${count(D.stop[i])}`);
  add('shard', D.shard.names[D.shard.codes[i]]).className = 'wide';
  add('id', copied(D.uid[i])).className = 'wide';
  if (command(i)) add('take it out of its shard', copied(command(i))).className = 'wide';
  parts.push(dl);
  return parts;
}

function command(i) {  // plain POSIX tools: the part lies in one piece in the tar
  const size = value('bytes', i), media = D.media.names[D.media.codes[i]];
  if (!(size > 0) || !media) return '';
  const name = D.shard.names[D.shard.codes[i]], path = name.startsWith('/') ? name : D.folder + name;
  return `tail -c +${D.offset[i] + 1} ${quoted(path)} | head -c ${size} > ${quoted(`${D.uid[i]}.${media}`)}`;
}

const quoted = text => /^[\w./+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

function copied(text) {
  const box = make('div', 'copy'), code = make('code', '', text), button = make('button', '', 'copy');
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(text); } catch {
      getSelection().selectAllChildren(code);
      document.execCommand('copy');
    }
    button.textContent = 'copied';
    setTimeout(() => { button.textContent = 'copy'; }, 1200);
  };
  box.append(code, button);
  return box;
}

dialog.onclose = () => {
  const at = state.open;
  state.open = -1;
  if (at >= 0) point(at);
  list.focus();
  writeHash();
};
dialog.onclick = event => { if (event.target === dialog) dialog.close(); };
const step = by => {
  const at = state.open + by;
  if (at >= 0 && at < many) openAt(at);
};
$('before').onclick = () => step(-1);
$('after').onclick = () => step(1);
$('close').onclick = () => dialog.close();
