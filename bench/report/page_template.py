"""The page's HTML and CSS. Values are escaped by jinja2; the SVG of plots is our own."""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root {
  --paper: #ffffff; --panel: #f6f7f9; --ink: #1c2530; --soft: #5a6675; --grid: #d9dee5; --warn: #8a4b00; --warn-paper: #fff4e0;
  --series-1: #0b62a8; --series-2: #c2410c; --series-3: #047857; --series-4: #9d2b80; --series-5: #8a6100; --series-6: #475569;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --panel: #1c2229; --ink: #e6ebf0; --soft: #a3b0be; --grid: #36404b; --warn: #ffc46b; --warn-paper: #33270f;
    --series-1: #6cb6ff; --series-2: #ff9e64; --series-3: #4fd6a5; --series-4: #f29ad5; --series-5: #f0c24b; --series-6: #b6c2cf;
  }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--grid); overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0; }
p.soft, figcaption, .remark { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; font-size: .95rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.notes { background: var(--warn-paper); color: var(--ink); border-left: 4px solid var(--warn); padding: .5rem 1rem; margin: .8rem 0; }
.notes ul { margin: .2rem 0; padding-left: 1.1rem; }
.notes strong { color: var(--warn); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; padding: .8rem; background: var(--panel); border-radius: 6px; }
figure h3 { margin: 0 0 .4rem; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
figcaption { margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th.name, td.name { text-align: left; }
td.long { white-space: normal; min-width: 14rem; text-align: left; }
details { margin: 1.4rem 0; }
summary { cursor: pointer; font-weight: 600; }
@media (max-width: 40rem) {
  body { padding: .8rem; } dl { grid-template-columns: 1fr; } dt { margin-top: .3rem; } figure { padding: .5rem; }
}
@media print { figure { break-inside: avoid; } }
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% for page in pages %}
{% if pages|length > 1 %}<h2>{{ page.heading }}</h2>{% endif %}
<dl>{% for name, value in page.facts %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% if page.notes %}<div class="notes" role="note"><strong>Before you trust these figures</strong>
<ul>{% for note in page.notes %}<li>{{ note }}</li>{% endfor %}</ul></div>{% endif %}
{% endfor %}
</header>
<main>
<h2>Plots</h2>
<div class="plots">
{% for plot in plots %}<figure id="plot-{{ plot.name }}" role="group" aria-label="{{ plot.title }}"><h3>{{ plot.title }}</h3>
{% if plot.svg %}{{ plot.svg|safe }}
<figcaption>{{ plot.text }}</figcaption>{% else %}<p class="soft">{{ plot.text }}</p>{% endif %}</figure>
{% endfor %}</div>
{% for page in pages %}
<h2>Tables{% if pages|length > 1 %}: {{ page.heading }}, {{ page.id }}{% endif %}</h2>
{% for section in page.sections %}<section>
<h3>{{ section.title }}</h3>
{% if section.columns %}<div class="scroll"><table>
<thead><tr>{% for column in section.columns -%}
<th scope="col"{% if loop.index0 < section.n_names %} class="name"{% endif %}>{{ column }}</th>
{%- endfor %}</tr></thead>
<tbody>{% for row in section.rows %}<tr>{% for cell in row -%}
<td{% if cell|length > 48 %} class="long"{% elif loop.index0 < section.n_names %} class="name"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>{% endfor %}</tbody>
</table></div>{% endif %}
{% if section.remark %}<p class="remark">{{ section.remark }}</p>{% endif %}
</section>
{% endfor %}
<details><summary>Settings of the command</summary>
<dl>{% for name, value in page.settings %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl></details>
{% endfor %}
</main>
</body>
</html>
"""
