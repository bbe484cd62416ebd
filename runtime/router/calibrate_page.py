"""The HTML and CSS of a calibration's page. Values are escaped by jinja2; the SVG of plots is our own."""

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --paper: #ffffff; --panel: #f6f7f9; --ink: #1c2530; --soft: #5a6675; --grid: #d9dee5;
  --series-1: #0b62a8; --series-2: #c2410c; --series-3: #047857; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --panel: #1c2229; --ink: #e6ebf0; --soft: #a3b0be; --grid: #36404b;
    --series-1: #6cb6ff; --series-2: #ff9e64; --series-3: #4fd6a5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p.soft, figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0; font-size: .95rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; padding: .8rem; background: var(--panel); border-radius: 6px; }
figure svg { display: block; width: 100%; height: auto; font-family: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th.name, td.name { text-align: left; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: .8rem; } dl { grid-template-columns: 1fr; } }
@media print { figure { break-inside: avoid; } }
</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<dl>{% for name, value in facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</header>
<main>
<h2>Plots</h2>
<p class="soft">Of answers that the regression was not fitted to: {{ judged }}.</p>
<div class="plots">
{% for heading, text, svg in plots %}<figure role="group" aria-label="{{ heading }}"><h3>{{ heading }}</h3>
{{ svg|safe }}
<figcaption>{{ text }}</figcaption></figure>
{% endfor %}</div>
<h2>Figures</h2>
<div class="scroll"><table>
<thead><tr><th scope="col" class="name">held out</th>{% for way in apart %}<th scope="col">{{ way }}</th>{% endfor %}</tr></thead>
<tbody>{% for name, values in figures %}<tr><td class="name">{{ name }}</td>
{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
<h2>Kinds of questions</h2>
<div class="scroll"><table>
<thead><tr><th scope="col" class="name">kind</th><th scope="col">answers</th><th scope="col">right</th></tr></thead>
<tbody>{% for kind, n, share in kinds %}<tr><td class="name">{{ kind }}</td><td>{{ n }}</td><td>{{ share }}</td></tr>{% endfor %}</tbody>
</table></div>
</main>
</body>
</html>
"""
