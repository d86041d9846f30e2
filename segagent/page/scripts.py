"""The page's JavaScript: what must happen in the browser at once. It asks no host and keeps nothing."""

from __future__ import annotations

# Keeps the picture under a short address of the page's own, for the canvas and every small picture of it.
PICTURE = """
const keep = async () => {
  if (!props.value) return;
  const blob = await (await fetch(props.value)).blob();
  const old = window.segagentPicture;
  window.segagentPicture = URL.createObjectURL(blob);
  document.documentElement.style.setProperty('--picture', `url("${window.segagentPicture}")`);
  document.dispatchEvent(new Event('segagent:picture'));
  if (old) setTimeout(() => URL.revokeObjectURL(old), 5000);
};
watch('value', keep);
keep();
"""

CANVAS = """
<div class="stage" tabindex="0" aria-label="Picture: arrow keys move a cursor, space adds a click, backspace removes">
  <div class="fit"><img alt="" draggable="false" decoding="sync"><svg class="paint" preserveAspectRatio="none"></svg>
  <svg class="coarse" preserveAspectRatio="none"></svg><div class="marks"></div><div class="band"></div><div class="aim"></div></div>
</div>
<div class="view" role="group" aria-label="View">
  <button type="button" data-do="out" title="Zoom out (−)" aria-label="Zoom out">−</button>
  <button type="button" data-do="fit" title="Whole picture (0)" aria-label="Whole picture"><output>100 %</output></button>
  <button type="button" data-do="in" title="Zoom in (+)" aria-label="Zoom in">＋</button>
  <label title="Opacity of the masks">Opacity <input type="range" min="0" max="100" value="50" aria-label="Opacity of the masks"></label>
  <label class="truth" title="Outline of the target mask"><input type="checkbox" aria-label="Show the target"> Target</label>
</div>
"""

# Positions leave as shares of the picture's width and height, so that no zoom or scaling on the way can shift them.
CANVAS_JS = """
const $ = (name, root = element) => root.querySelector(name);
const stage = $('.stage'), fit = $('.fit'), photo = $('.fit img'), paint = $('.paint'), coarse = $('.coarse');
const marks = $('.marks'), band = $('.band'), aim = $('.aim'), output = $('.view output');
const path = (d, attributes) => {
  const node = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  for (const [name, value] of Object.entries({d, 'fill-rule': 'evenodd', ...attributes})) node.setAttribute(name, value);
  return node;
};
const layer = (d, color, kind) => [path(d, {class: 'rim ' + kind}), path(d, {class: 'mask ' + kind, fill: color, stroke: color})];
const put = list => marks.replaceChildren(...list.map((mark, i) => {
  const node = document.createElement('span');
  node.className = `mark ${mark.sign}${i === list.length - 1 ? ' latest' : ''}`;
  node.style.left = mark.x + '%';
  node.style.top = mark.y + '%';
  if (mark.sign === 'box') { node.style.width = mark.w + '%'; node.style.height = mark.h + '%'; }
  node.append(Object.assign(document.createElement('b'), {textContent: mark.n}));
  return node;
}));
const draw = () => {
  const value = props.value;
  if (!value) return;
  fit.style.setProperty('--ratio', value.w / value.h);
  paint.setAttribute('viewBox', value.grid);
  const order = [...value.layers].sort((a, b) => a.on - b.on);
  paint.replaceChildren(
    ...order.flatMap(l => layer(l.d, l.color, l.on ? 'on' : 'off')),
    path(value.target, {class: 'truth rim'}), path(value.target, {class: 'truth'}));
  coarse.replaceChildren();
  paint.classList.remove('behind');
  $('.view .truth').hidden = !value.target;
  put(value.marks);
  photo.alt = value.alt;
};
const picture = () => { if (window.segagentPicture) photo.src = window.segagentPicture; };
document.addEventListener('segagent:picture', picture);
document.addEventListener('segagent:preview', event => {
  if (!event.detail) return draw();
  coarse.setAttribute('viewBox', event.detail.grid);
  coarse.replaceChildren(...layer(event.detail.d, event.detail.color, 'on'));
  paint.classList.add('behind');
  put(event.detail.marks);
});
watch('value', draw);
picture();
draw();

let zoom = 1;
const scale = next => {
  next = Math.min(8, Math.max(1, next));
  const x = (stage.scrollLeft + stage.clientWidth / 2) / stage.scrollWidth, y = (stage.scrollTop + stage.clientHeight / 2) / stage.scrollHeight;
  zoom = next;
  fit.style.setProperty('--zoom', zoom);
  stage.scrollLeft = x * stage.scrollWidth - stage.clientWidth / 2;
  stage.scrollTop = y * stage.scrollHeight - stage.clientHeight / 2;
  output.textContent = Math.round(100 * zoom) + ' %';
};
const views = {in: () => scale(zoom * 1.5), out: () => scale(zoom / 1.5), fit: () => scale(1)};
$('.view').addEventListener('click', event => views[event.target.closest('button')?.dataset.do]?.());
$('.view input[type=range]').addEventListener('input', event => fit.style.setProperty('--paint', event.target.value / 100));
$('.view input[type=checkbox]').addEventListener('change', event => fit.classList.toggle('truthful', event.target.checked));
stage.addEventListener('wheel', event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  scale(zoom * (event.deltaY < 0 ? 1.2 : 1 / 1.2));
}, {passive: false});

let from = null, dragged = false;
const boxing = () => document.querySelector('#sign input[value=box]')?.checked;
const at = event => {
  const box = photo.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map(v => Math.min(1, Math.max(0, v)));
};
fit.addEventListener('pointerdown', event => {
  dragged = false;
  if (event.button || (event.pointerType === 'touch' && !boxing())) return;
  from = {at: at(event), x: event.clientX, y: event.clientY};
  fit.setPointerCapture(event.pointerId);
});
fit.addEventListener('pointermove', event => {
  if (!from) return;
  dragged ||= Math.hypot(event.clientX - from.x, event.clientY - from.y) > 6;
  const [a, b] = [from.at, at(event)], share = v => 100 * v + '%';
  Object.assign(band.style, {display: dragged ? 'block' : 'none', left: share(Math.min(a[0], b[0])), top: share(Math.min(a[1], b[1])),
    width: share(Math.abs(a[0] - b[0])), height: share(Math.abs(a[1] - b[1]))});
});
const release = event => {
  if (from && dragged && event.type === 'pointerup') {
    const [a, b] = [from.at, at(event)];
    trigger('select', {x: Math.min(a[0], b[0]), y: Math.min(a[1], b[1]), x1: Math.max(a[0], b[0]), y1: Math.max(a[1], b[1])});
  }
  from = null;
  band.style.display = 'none';
};
fit.addEventListener('pointerup', release);
fit.addEventListener('pointercancel', release);
const send = (event, right) => {
  event.preventDefault();
  if (dragged) return;
  const [x, y] = at(event);
  trigger('select', {x, y, right});
};
fit.addEventListener('click', event => send(event, false));
fit.addEventListener('contextmenu', event => send(event, true));

const cursor = {x: 0.5, y: 0.5};
stage.addEventListener('keydown', event => {
  const step = event.shiftKey ? 0.002 : 0.02;
  const move = {ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step]}[event.key];
  if (move) {
    cursor.x = Math.min(1, Math.max(0, cursor.x + move[0]));
    cursor.y = Math.min(1, Math.max(0, cursor.y + move[1]));
    Object.assign(aim.style, {left: 100 * cursor.x + '%', top: 100 * cursor.y + '%'});
    stage.classList.add('aiming');
  } else if (event.key === ' ') trigger('select', {...cursor, right: false});
  else if (event.key === 'Backspace') trigger('select', {...cursor, right: true});
  else return;
  event.preventDefault();
});
stage.addEventListener('blur', () => stage.classList.remove('aiming'));

const visible = () => element.offsetParent !== null;
const press = name => [...document.querySelectorAll(name)].find(node => node.offsetParent && !node.disabled)?.click();
const sign = name => document.querySelector(`#sign input[value=${name}]`)?.click();
const save = () => {  // the button may lie in an accordion that is closed, or was never open
  const button = document.querySelector('#export-mask');
  if (button) return button.click();
  press('#save .label-wrap');
  setTimeout(() => document.querySelector('#export-mask')?.click(), 500);
};
const keys = {
  z: () => press('#undo'), y: () => press('#redo'), r: () => press('#run, #stop'), n: () => press('#step'), e: save,
  x: () => sign(document.querySelector('#sign input[value=remove]')?.checked ? 'add' : 'remove'), b: () => sign(boxing() ? 'add' : 'box'),
  '+': views.in, '-': views.out, 0: views.fit,
};
document.addEventListener('keydown', event => {
  if (!visible() || event.altKey || event.target.closest('input:not([type=radio], [type=range], [type=checkbox]), textarea, select, [contenteditable]')) return;
  const commands = event.ctrlKey || event.metaKey;
  const key = commands && event.shiftKey && event.key.toLowerCase() === 'z' ? 'y' : event.key.toLowerCase();
  if (!keys[key] || (commands && !'zy'.includes(key))) return;
  event.preventDefault();
  keys[key]();
});

const take = (event, data) => {
  const file = [...(data?.files ?? [])].find(f => f.type.startsWith('image/'));
  const input = document.querySelector('#upload-slot input[type=file]');
  if (!file || !input || !visible() || event.target.closest?.('[role=tabpanel] .wrap input')) return;
  event.preventDefault();
  const held = new DataTransfer();
  held.items.add(file);
  input.files = held.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
};
document.addEventListener('paste', event => take(event, event.clipboardData));
document.addEventListener('dragover', event => { if (visible()) { event.preventDefault(); element.classList.add('over'); } });
for (const end of ['drop', 'dragleave', 'dragend']) document.addEventListener(end, () => element.classList.remove('over'));
document.addEventListener('drop', event => take(event, event.dataTransfer));
"""

# Slider and small pictures show a step at once, coarsely; the server's answer then shows it exactly.
TIMELINE_JS = """
const frame = index => element.querySelector(`.frame[data-key="${index}"]`);
const preview = index => {
  const node = frame(index), drawn = node?.querySelector('path');
  if (!drawn) return;
  const detail = {grid: drawn.parentNode.getAttribute('viewBox'), d: drawn.getAttribute('d'), color: drawn.getAttribute('fill'),
    marks: JSON.parse(node.dataset.marks)};
  document.dispatchEvent(new CustomEvent('segagent:preview', {detail}));
  element.querySelector('output').textContent = `${index} / ${element.querySelector('input').max}`;
};
const here = () => element.querySelector('.frame[aria-current]')?.dataset.key;
const go = index => {
  if (String(index) === here()) document.dispatchEvent(new CustomEvent('segagent:preview'));
  else trigger('select', {key: String(index)});
};
let playing = null;
const halt = () => { clearTimeout(playing); playing = null; };
const next = index => {
  const slider = element.querySelector('input');
  if (!slider) return halt();
  slider.value = index;
  preview(index);
  const pause = 1000 * Math.max(0.15, Number(document.querySelector('#pause input')?.value ?? 0.5));
  playing = setTimeout(() => index < slider.max ? next(index + 1) : (halt(), go(index)), pause);
};
element.addEventListener('input', event => { halt(); preview(event.target.value); });
element.addEventListener('change', event => go(event.target.value));
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  const was = playing;
  halt();
  if (button.dataset.do === 'play') was ? go(element.querySelector('input').value) : next(0);
  else go(button.dataset.key);
});
watch('value', () => {
  const current = element.querySelector('.frame[aria-current]'), film = element.querySelector('.film');
  if (current) film.scrollLeft = current.offsetLeft - film.clientWidth / 2;
});
"""

# A list of buttons and fields, each with a data-key, that says which one was used.
BUTTONS_JS = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-key]');
  if (button) trigger('select', {key: button.dataset.key});
});
element.addEventListener('change', event => {
  if (event.target.dataset.key) trigger('select', {key: event.target.dataset.key, value: event.target.value});
});
"""

# The same, scrolled to the row that is shown.
LOG_JS = (
    BUTTONS_JS
    + """
watch('value', () => {
  const rows = element.querySelector('.steps'), row = element.querySelector('.current');
  if (row) rows.scrollTop = row.offsetTop - rows.clientHeight / 2;
});
"""
)

DOWNLOAD_JS = """
file => {
  if (!file) return;
  const bytes = Uint8Array.from(atob(file.base64), c => c.charCodeAt(0));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([bytes], {type: file.type}));
  link.download = file.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
"""
