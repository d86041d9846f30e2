"""The page's CSS: strings only; system fonts, Gradio's own colours, light and dark."""

from __future__ import annotations

_FRAME = """
.gradio-container { width: 100%; max-width: 1400px !important; margin: 0 auto;
  --quiet: color-mix(in srgb, var(--body-text-color) 72%, transparent);
  --block-info-text-color: var(--quiet); --input-placeholder-color: color-mix(in srgb, var(--body-text-color) 62%, transparent); }
.gradio-container .main.app { padding: 12px 20px; }
.gradio-container .html-container { padding: 0; }
#header h1 { font-size: 1.4rem; font-weight: 700; margin: 0; }
#header p { margin: 0; color: var(--quiet); font-size: .95rem; }
#tabs { gap: 8px; }
.tabitem { padding: 0 !important; border: 0 !important; }
.tabitem > .column, #main, #main > .column { gap: 10px; }
#bar .block { padding: 8px 12px; }
.picker { contain: inline-size; display: flex; gap: 6px; overflow-x: auto; padding: 2px 2px 6px; scrollbar-width: thin; }
.picker button { flex: 0 0 auto; width: 78px; border: 2px solid transparent; border-radius: 10px; padding: 3px;
  background: var(--background-fill-secondary); color: var(--body-text-color); cursor: pointer; text-align: center; }
.picker button:hover, .picker button:focus-visible { border-color: var(--color-accent); outline: none; }
.picker button.chosen { border-color: var(--color-accent); background: var(--color-accent-soft); }
.picker img { width: 100%; height: 40px; object-fit: cover; border-radius: 7px; display: block; margin: 0; }
.picker span { font-size: .7rem; font-weight: 400; line-height: 1.15; height: 2.3em; margin-top: 3px; overflow: hidden;
  display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; }
#examples { gap: 6px; flex-wrap: nowrap; }
#examples #picker { min-width: 0; flex: 1 1 0; }
#upload-slot { flex: 0 0 auto; width: 78px; min-width: 0 !important; }
#upload { width: 78px; min-width: 0; height: 78px; padding: 4px; margin-top: 2px; border-radius: 10px;
  font-size: .75rem; line-height: 1.25; font-weight: 400; white-space: normal; border: 2px dashed var(--border-color-primary);
  background: none; color: var(--body-text-color); }
#upload:hover, #upload:focus-visible { border-color: var(--color-accent); }
#bar { align-items: stretch; gap: 10px; }
#bar button { min-height: 44px; }
#run, #stop { max-width: 160px; }
#who label, #sign label { padding: 5px 6px; }
#who .wrap, #sign .wrap { gap: 5px; }
#who label span, #sign label span { margin-left: 4px; font-size: .85rem; }
#tools, .files { gap: 8px; flex-wrap: wrap; }
#tools > *, .files > * { min-width: max-content !important; flex: 1 1 0; }
#tools button { min-height: 36px; }
.files button { flex: 1 1 30%; }
.help { font-size: .78rem; color: var(--quiet); margin: 0; line-height: 1.9; }
.help kbd { border: 1px solid var(--border-color-primary); border-radius: 4px; padding: 0 4px; font: inherit; color: var(--body-text-color);
  background: var(--background-fill-secondary); }
.sources { font-size: .8rem; padding-left: 1.2em; margin: 0; overflow-wrap: anywhere; }
"""

_CANVAS = """
.stage { --room: max(300px, calc(100vh - 470px)); overflow: auto; max-height: var(--room); border-radius: 10px;
  background: var(--background-fill-secondary); scrollbar-width: thin; }
.stage:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 1px; }
.over .stage { outline: 3px dashed var(--color-accent); outline-offset: -3px; }
.fit { --zoom: 1; --ratio: 1.5; --paint: .5; position: relative; margin: 0 auto; aspect-ratio: var(--ratio); cursor: crosshair;
  width: calc(min(100%, var(--room) * var(--ratio)) * var(--zoom)); touch-action: manipulation; user-select: none; overflow: hidden;
  -webkit-touch-callout: none; }
body:has(#sign input[value=box]:checked) .fit { touch-action: none; }
.fit img, .fit svg { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; display: block; }
.fit svg, .marks, .band, .aim { pointer-events: none; }
.fit path { vector-effect: non-scaling-stroke; stroke-width: 1.5; }
.fit path.mask { fill-opacity: var(--paint); }
.fit path.rim { fill: none; stroke: #111; stroke-opacity: .75; stroke-width: 3.5; }
.fit path.off { opacity: .55; }
.fit path.truth { display: none; fill: none; stroke: #fff; stroke-width: 2; stroke-dasharray: 6 5; }
.fit path.truth.rim { stroke: #111; stroke-width: 4; }
.fit.truthful path.truth { display: inline; }
.fit .behind .on { display: none; }
.marks, .band, .aim { position: absolute; inset: 0; }
.band { display: none; inset: auto; border: 2px dashed #fff; outline: 1px dashed #111; background: rgb(255 255 255 / .12); }
.aim { display: none; inset: auto; width: 25px; height: 25px; margin: -12.5px; border: 2px solid #fff; border-radius: 50%;
  box-shadow: 0 0 0 1.5px #111, inset 0 0 0 1.5px #111; }
.aiming .aim { display: block; }
.mark { position: absolute; }
.mark b { position: absolute; left: 0; top: 0; transform: translate(-50%, -50%); min-width: 22px; height: 22px; line-height: 18px;
  padding: 0 3px; border: 2px solid #fff; border-radius: 11px; text-align: center; font-size: 12px; color: #fff; background: #046354;
  box-shadow: 0 0 0 1px rgb(0 0 0 / .6); box-sizing: border-box; }
.mark.remove b { background: #be123c; border-radius: 5px; }
.mark.box { border: 2px solid #fff; outline: 1px solid #111; }
.mark.box b { background: #374151; border-radius: 5px; }
.mark.latest b, .mark.box.latest { border-color: #ffd60a; }
.view { display: flex; flex-wrap: wrap; gap: 4px 6px; align-items: center; margin-top: 6px; font-size: .8rem; color: var(--quiet); }
.view button, .scrub button { border: 1px solid var(--border-color-primary); border-radius: 7px; min-width: 32px; height: 28px; padding: 0 8px;
  background: var(--background-fill-secondary); color: var(--body-text-color); font-size: .8rem; cursor: pointer; }
.view label { display: flex; align-items: center; gap: 5px; margin-left: 6px; }
.view label[hidden] { display: none; }
.view input[type=range] { width: 74px; }
.view input, .scrub input { accent-color: var(--color-accent); }
.things { display: flex; flex-wrap: wrap; gap: 6px; }
.thing { display: inline-flex; align-items: center; gap: 6px; height: 32px; padding: 0 10px; border: 1px solid var(--border-color-primary);
  border-radius: 16px; background: none; color: var(--body-text-color); font-size: .85rem; font-weight: 400; cursor: pointer; max-width: 220px; }
.thing span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.thing i { width: 14px; height: 14px; border-radius: 50%; flex: none; }
.thing.current { border: 2px solid var(--color-accent); cursor: default; }
.thing.more { border-style: dashed; }
.thing input[type=text] { field-sizing: content; min-width: 60px; max-width: 190px; text-overflow: ellipsis; border: 0; background: none; color: inherit; font-size: .85rem; padding: 0; }
.thing input[type=text]::placeholder { color: var(--body-text-color); }
.thing input[type=color] { width: 18px; height: 18px; padding: 0; border: 0; background: none; flex: none; cursor: pointer; }
.thing.current button { border: 0; background: none; color: inherit; cursor: pointer; font-size: 1rem; padding: 0 2px; }
"""

_STEPS = """
.figures { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; margin: 0; }
.figures div { background: var(--background-fill-secondary); border-radius: 10px; padding: 6px 12px; }
.figures dt { font-size: .75rem; color: var(--quiet); }
.figures dd { font-size: 1.4rem; line-height: 1.3; font-weight: 600; margin: 0; font-variant-numeric: tabular-nums; }
.note { min-height: 1.5em; margin: 8px 2px 0; font-size: .9rem; }
.note.bad { color: #b91c1c; font-weight: 600; }
.dark .note.bad { color: #fca5a5; }
.steps { position: relative; border: 1px solid var(--border-color-primary); border-radius: 10px; overflow: auto; max-height: 260px; }
.entry { display: grid; grid-template-columns: 1.2rem 1fr 4.2rem 2.4rem; gap: 6px; width: 100%; padding: 4px 10px;
  text-align: left; font-size: .85rem; font-weight: 400; color: var(--body-text-color); background: none; border: 0;
  font-variant-numeric: tabular-nums; }
.entry.head { position: sticky; top: 0; font-size: .72rem; color: var(--quiet); background: var(--background-fill-secondary); }
button.entry { cursor: pointer; border-top: 1px solid var(--border-color-primary); }
button.entry:hover, button.entry:focus-visible { background: var(--background-fill-secondary); outline: none; }
button.entry.current { background: var(--color-accent-soft); box-shadow: inset 3px 0 var(--color-accent); }
.entry span:nth-child(n+3) { text-align: right; }
.entry q { display: block; quotes: none; color: var(--quiet); font-size: .75rem; overflow-wrap: anywhere; }
.curve { width: 100%; max-width: 440px; margin: 0 auto 8px; display: block; }
.scrub { display: flex; align-items: center; gap: 10px; font-size: .8rem; }
.scrub input { flex: 1; min-width: 0; }
.scrub output { font-variant-numeric: tabular-nums; color: var(--quiet); min-width: 3.2em; text-align: right; }
.film { contain: inline-size; position: relative; display: flex; gap: 6px; overflow-x: auto; padding: 6px 2px; scrollbar-width: thin; }
.frame, .node { border: 2px solid var(--border-color-primary); border-radius: 9px; padding: 3px; background: var(--background-fill-secondary);
  color: var(--body-text-color); font-size: .72rem; font-weight: 400; cursor: pointer; }
.frame { flex: 0 0 auto; display: grid; grid-template-columns: 1fr auto; gap: 0 6px; }
.frame svg { grid-column: 1 / 3; height: 56px; width: auto; max-width: 150px; }
.frame svg, .node svg, .still svg { display: block; border-radius: 6px; background: var(--picture) center / 100% 100%; overflow: hidden; }
.frame path, .node path, .still path { fill-opacity: .6; }
.frame span { text-align: left; }
.frame b, .node b { font-variant-numeric: tabular-nums; font-weight: 600; }
.frame:hover, .frame:focus-visible, .node:hover, .node:focus-visible { border-color: var(--color-accent); outline: none; }
.frame[aria-current] { border-color: var(--color-accent); background: var(--color-accent-soft); }
.facts { font-size: .82rem; color: var(--quiet); margin: 0 0 6px; }
.tree { contain: inline-size; overflow: auto; max-height: 470px; border: 1px solid var(--border-color-primary); border-radius: 10px; scrollbar-width: thin; }
.tree > div { position: relative; margin: 6px; }
.tree > div > svg { position: absolute; inset: 0; max-width: none; }
.tree > div > svg > path { fill: none; stroke: var(--border-color-primary); stroke-width: 2; }
.tree > div > svg > path.chosen { stroke: var(--color-accent); stroke-width: 3.5; }
.tree > div > svg > path.undo { stroke: #d97706; stroke-dasharray: 5 4; }
.tree marker path { fill: #d97706; }
.node { position: absolute; display: grid; grid-template-columns: 1fr auto; grid-template-rows: 1fr auto; gap: 1px 4px; align-items: center; }
.node svg { grid-column: 1 / 3; max-width: 100%; max-height: 76px; height: 76px; width: auto; margin: 0 auto; }
.node span { text-align: left; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; font-size: .68rem; }
.node.chosen { border-color: var(--color-accent); }
.node.walked { background: var(--color-accent-soft); }
.node.stop svg { opacity: .45; }
.node[aria-current] { outline: 3px solid #ffd60a; outline-offset: -1px; }
"""

_TABS = """
.still svg { width: min(100%, calc(52vh * var(--ratio))); height: auto; margin: 0 auto; }
.still { margin-bottom: 8px; }
.figures.four { grid-template-columns: repeat(4, 1fr); }
.film div.frame { cursor: default; }
.shown { margin: 0; }
.shown img { max-width: 100%; max-height: 60vh; margin: 0 auto; display: block; border-radius: 10px; }
.shown figcaption { text-align: center; font-weight: 600; margin-top: 6px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; }
.gallery figure { margin: 0; border: 2px solid var(--border-color-primary); border-radius: 10px; overflow: hidden; }
.gallery figure.remove { border-color: #be123c; }
.gallery img { width: 100%; height: 130px; object-fit: contain; margin: 0; background: var(--background-fill-secondary); }
.gallery figcaption { padding: 4px 8px 8px; font-size: .78rem; overflow-wrap: anywhere; }
"""

_NARROW = """
@media (max-width: 640px) {
  .gradio-container .main.app { padding: 8px 10px; }
  .stage { --room: 60vh; }
  #run, #stop { max-width: none; }
  .figures.four { grid-template-columns: repeat(2, 1fr); }
}
"""

CSS = _FRAME + _CANVAS + _STEPS + _TABS + _NARROW
