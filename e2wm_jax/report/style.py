"""The style sheet of a report: calm, typographic, for light and dark screens, phones and paper."""

from e2wm_jax.report.drawing import COLORS
from e2wm_jax.report.heat import SHADES

# Two sets of colors, each told apart with all kinds of color vision and each against its background.
LIGHT = """
color-scheme:light;--paper:#fdfdfb;--ink:#22252a;--soft:#5d636c;--shade:#22252a2b;--faint:#e4e4de;--tint:#f4f4ef;
--link:#0b62a3;--c0:#14458e;--c1:#d67c1c;--c2:#00a672;--c3:#be7cb6;--c4:#7a4900;--c5:#4c3d4a;--ok:#0a7a5a;--failed:#b3400a;
--h0:#f3f1dc;--h1:#e0ebc7;--h2:#c3e1bb;--h3:#9dd3b5;--h4:#74c2b4;--h5:#4faeb4;--h6:#3697b1;--h7:#2a7ea9;--h8:#27649c;
--h9:#27488a;--h10:#212a66
"""
DARK = """
color-scheme:dark;--paper:#15171b;--ink:#e4e4df;--soft:#9ba1aa;--shade:#0009;--faint:#2e323a;--tint:#1d2026;--link:#7ab8ee;
--c0:#4a88d4;--c1:#d2602c;--c2:#6fe3bd;--c3:#b0718c;--c4:#e8d24e;--c5:#c3cffa;--ok:#42c79d;--failed:#f08a57;
--h0:#232a4f;--h1:#263f76;--h2:#27588f;--h3:#2a729f;--h4:#338aab;--h5:#4aa3b1;--h6:#6bb9b3;--h7:#93ccb4;--h8:#badcb9;
--h9:#dcebc8;--h10:#faf7e3
"""
_SCHEMES = f":root{{{LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}"
_TEXT = """
*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:3.5rem 1.25rem 4rem;max-width:40.5rem;background:var(--paper);color:var(--ink);
font:1.0625rem/1.6 Charter,"Bitstream Charter","Iowan Old Style","Palatino Linotype",Georgia,serif;
overflow-wrap:break-word;print-color-adjust:exact;-webkit-print-color-adjust:exact}
h1{font-size:2rem;line-height:1.2;font-weight:600;letter-spacing:-.01em;margin:0 0 .6rem;text-wrap:balance}
h2{font-size:1.35rem;line-height:1.3;font-weight:600;margin:3.2rem 0 .8rem;padding-top:1.1rem;
border-top:1px solid var(--faint)}
h3{font-size:1.05rem;line-height:1.3;font-weight:600;margin:2.6rem 0 .4rem}
p{margin:.8rem 0}.lead{font-size:1.15rem;color:var(--soft);margin:0 0 1.5rem}a{color:var(--link)}
nav,table,dl,summary,figcaption,footer,.trajectory,.beside h3{font-family:system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif}
nav ol{margin:0;padding:0;list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1.2rem;font-size:.9rem}
nav a{text-decoration:none;display:inline-block;padding:.2rem 0}nav a:hover{text-decoration:underline}
figure{margin:1.8rem 0}figcaption{font-weight:600;font-size:.95rem;line-height:1.4;margin:0 0 .7rem}
figcaption small{font-weight:400;font-size:.85rem;color:var(--soft);margin-left:.2rem}
.chart{max-width:38rem}.chart svg{display:block;width:100%;height:auto;overflow:visible}
figure.table{margin:1.5rem 0}
.wide{overflow-x:auto;background:linear-gradient(to left,var(--paper) 40%,transparent) right/3rem 100% no-repeat
local,linear-gradient(to left,var(--shade),transparent) right/.9rem 100% no-repeat scroll}
table{border-collapse:collapse;min-width:60%;font-size:.9rem;line-height:1.4;font-variant-numeric:tabular-nums}
.table figcaption{width:0;min-width:100%}
th{font-weight:500;color:var(--soft);vertical-align:bottom;border-bottom:1px solid var(--soft)}
th,td{padding:.42rem .7rem;text-align:left}:is(th,td):first-child{padding-left:0}:is(th,td):last-child{padding-right:0}
td{border-bottom:1px solid var(--faint);vertical-align:top}
th.number,td.number{text-align:right}
td.number,td.brief,th span{white-space:nowrap}strong{font-weight:700}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));
gap:.8rem 1.5rem;margin:1.5rem 0;font-size:.9rem}
dl div{min-width:0}dt{color:var(--soft);font-size:.8rem}
dd{margin:0;line-height:1.4;font-variant-numeric:tabular-nums}
pre,code{font:.84rem/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{white-space:pre-wrap;background:var(--tint);padding:.9rem 1rem;border-radius:.35rem;margin:1rem 0}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(15rem,100%),1fr));gap:0 1rem}
.beside div{min-width:0}.beside div:first-child:nth-last-child(odd):not(:only-child){grid-column:1/-1}
.beside h3{font-size:.85rem;font-weight:500;color:var(--soft);margin:.5rem 0 .2rem}
.beside pre{margin:0 0 .4rem;padding:.6rem .8rem}.texts figcaption{margin-bottom:.2rem}
details{margin:1rem 0;border-left:2px solid var(--faint);padding-left:1rem}
summary{cursor:pointer;font-size:.95rem;padding:.2rem 0}
.trajectory ol{list-style:none;counter-reset:step;margin:0;padding:0}
.trajectory li{counter-increment:step;display:grid;grid-template-columns:1.7rem 1fr 1.4rem;gap:.6rem;
padding:.22rem 0;border-bottom:1px solid var(--faint);align-items:baseline}
.trajectory li::before{content:counter(step);color:var(--soft);font-size:.8rem;text-align:right;
font-variant-numeric:tabular-nums}
.mark{text-align:center;font-weight:600}.ok .mark{color:var(--ok)}.failed .mark,.failed code{color:var(--failed)}
.said{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
footer{margin-top:4rem;padding-top:1rem;border-top:1px solid var(--faint);font-size:.85rem;color:var(--soft)}
a:focus-visible,summary:focus-visible,.wide:focus-visible{outline:2px solid var(--link);outline-offset:3px}
"""
_CHART = """
text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--soft)}
text.name,text.note,text.value{fill:var(--ink)}
text.name,text.value{stroke:var(--paper);stroke-width:4px;stroke-linejoin:round;paint-order:stroke}
svg line,svg path{fill:none;stroke-linecap:round;stroke-linejoin:round}
svg .line{stroke:currentColor;stroke-width:1.8}svg .line[stroke-dasharray]{stroke-linecap:butt}
svg .raw{stroke:currentColor;stroke-width:.8;opacity:.35}svg .bar{fill:currentColor;opacity:.85}
svg .marker{fill:currentColor;stroke:var(--paper);stroke-width:1}
svg .grid{stroke:var(--faint);stroke-width:.8}svg .axis{stroke:var(--soft);stroke-width:.8}
svg .error{stroke:currentColor;stroke-width:1.2;opacity:.6}svg .whisker{stroke:var(--ink);stroke-width:1}
svg .tick{stroke:var(--ink);stroke-width:1.8;stroke-dasharray:3 2;stroke-linecap:butt}
svg .arrow{stroke:var(--soft);stroke-width:.8;opacity:.7}svg .link{stroke:currentColor;stroke-width:1;opacity:.6}
svg .leader{stroke:var(--soft);stroke-width:.6}
svg .room{fill:var(--tint);stroke:var(--faint);stroke-width:1}
svg .door{stroke:var(--soft);stroke-width:3;opacity:.5}
svg .way{stroke:currentColor;stroke-width:1.4;opacity:.75}svg .way-head{fill:currentColor}
svg .stop{fill:var(--ink)}svg .start{fill:var(--paper);stroke:var(--ink);stroke-width:1.5}
text.room-name{fill:var(--ink);font-weight:600}svg .failed{fill:var(--failed)}
svg .dot{fill:var(--soft)}svg .cross{stroke:var(--soft);stroke-width:1}
"""
_SERIES = "".join(f".c{n}{{color:var(--c{n})}}" for n in range(COLORS))
_SHADES = "".join(f".h{n}{{fill:var(--h{n})}}" for n in range(SHADES))
_PHONE = """
@media (max-width:34rem){body{padding:2rem 1rem 3rem;font-size:1rem}h1{font-size:1.6rem}h2{margin-top:2.4rem}
text{font-size:13px}dl{grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr))}
table{font-size:.85rem}th,td{padding-left:.4rem;padding-right:.4rem}}
"""
# A table that needs more than the column of text takes it, evenly on both sides.
_DESK = """
@media screen and (min-width:44rem){figure.table{width:max-content;min-width:100%;max-width:min(76rem,100vw - 4rem);
margin-left:50%;transform:translateX(-50%)}.table td.words:not(.brief){max-width:26rem}}
"""
_PRINT = (
    f"@media print{{:root{{{LIGHT};--paper:#fff}}}}"
    + """
@media print{body{max-width:none;padding:0;font-size:10.5pt}nav{display:none}
.wide{overflow:visible}h2{break-after:avoid}figure,tr,dl{break-inside:avoid}
details::details-content{content-visibility:visible;display:block;height:auto}}
"""
)
CHART_STYLE = _SCHEMES + _CHART + _SERIES + _SHADES
STYLE = CHART_STYLE + _TEXT + _DESK + _PHONE + _PRINT
