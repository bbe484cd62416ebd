"""Jinja2 for templates from strangers: no reach beyond the values given, and bounds on time, steps and memory within the process.

Jinja2's sandbox keeps a template from Python's internals, but not from running for ever (nested loops, macros that call each other) or
from filling memory in one operation ("a" * 10**9, "%9999999d", [x, x] forty times over). No thread, signal or trace function is needed to
stop it here, because nothing that a template can do is unbounded in the first place:

- Every loop, call, operator, comparison, attribute, filter and test passes through a Meter, which counts steps and looks at the clock. A
  loop counts its whole body for each turn. Where Jinja2 compiles an operation to bare Python (loops, literals, `~`, slices, comparisons),
  the syntax tree is rewritten before compilation, so that it passes through an internal filter.
- Every text or container that is made is charged to a budget, and none may be larger than a limit if it were written out, where shared
  parts count each time. So one operation takes milliseconds, and between two operations the clock is read.
- Operations that may make much of little (repetition, powers, padding, replace, join, format, indent, tojson) are estimated before they
  run.
- Only known methods of texts, lists and dicts, and filters known to be harmless, exist. Nothing is evaluated while a template is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import wraps
from types import BuiltinMethodType, MappingProxyType
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edgelm.runtime.template_filters import own_filters
from edgelm.runtime.template_meter import OBJECT_COST, LimitError, Meter, check_power, check_widths, replaced_size

MAX_RANGE = 100_000


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_METHODS: Mapping[type, frozenset[str]] = MappingProxyType(
    {
        str: _names(
            "capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
            "isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind "
            "rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill"
        ),
        dict: _names("copy get items keys values"),
        list: _names("copy count index"),
        tuple: _names("count index"),
    }
)
_BUILTIN_TYPES = (str, bytes, bool, int, float, complex, list, tuple, dict, set, frozenset, range, type(None))
_PADDING = ("center", "ljust", "rjust", "zfill")
_HARMLESS_FILTERS = _names(
    "abs capitalize count d default dictsort first float groupby int items last length list lower map max min reject rejectattr reverse "
    "select selectattr sort string title trim truncate unique upper urlencode wordcount"
)
_UNWANTED_NODES = {
    nodes.Block: "block",
    nodes.Extends: "extends",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.EvalContextModifier: "autoescape",
    nodes.ScopedEvalContextModifier: "autoescape",
}


class _Turns:
    """What a loop goes through; every turn costs its body."""

    def __init__(self, items: list[Any], weight: int, meter: Meter) -> None:
        self._items, self._weight, self._meter = items, weight, meter

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._meter.step(self._weight)
            yield item


class _Namespace(Namespace):
    """namespace(...), without its contents when printed: they may hold themselves."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Formatter(SandboxedFormatter):
    """str.format with a limit on widths."""

    def __init__(self, environment: LimitedEnvironment) -> None:
        super().__init__(environment)
        self._meter = environment.meter

    def format_field(self, value: Any, format_spec: str) -> str:
        check_widths(re.findall(r"\d+", format_spec))
        text: str = super().format_field(value, format_spec)
        self._meter.charge(len(text))
        return text


class _Generation(Extension):
    """The tag {% generation %}, which marks the assistant's part for training: here it does nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Instrument(NodeTransformer):
    """Rewrites what Jinja2 would compile to bare Python, and refuses what chat templates have no use for."""

    def __init__(self) -> None:
        self.heaviest_body = 1

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        for kind, name in _UNWANTED_NODES.items():
            if isinstance(node, kind):
                raise TemplateSyntaxError(f"{name} is not supported", node.lineno)
        if isinstance(node, nodes.Macro | nodes.CallBlock):
            self.heaviest_body = max(self.heaviest_body, _weight(node))
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named by Jinja2
        if node.recursive:
            raise TemplateSyntaxError("recursive loops are not supported", node.lineno)
        weight = nodes.Const(_weight(node), lineno=node.lineno)
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_turns", weight)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return _filter(self.generic_visit(node), "_admit")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _filter(self.generic_visit(node), "_admit")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, "_admit") if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        # Python warns where a literal that has no parts is cut.
        node.node = _filter(node.node, "_step")
        return _filter(node, "_admit")

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, "_step")
        return node


def _weight(node: nodes.Node) -> int:
    return 1 + sum(1 for _ in node.find_all(nodes.Node))


def _filter(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja2 with bounds. `meter` is set for each rendering, of which only one may run at a time."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, _Generation],
            finalize=self._finalize,
            optimized=False,
            cache_size=0,
        )
        self.meter = Meter(0, 0, 0, 0)
        self._heaviest_body = 1
        self.globals = {"range": _range, "dict": dict, "namespace": _Namespace}
        self.tests = {name: self._limited(test) for name, test in self.tests.items()}
        self.filters = {name: self._limited(FILTERS[name]) for name in _HARMLESS_FILTERS}
        for name, function in own_filters(self).items():
            self.filters[name] = self._limited(function)
        self.filters |= {
            "_turns": self._turns,
            "_admit": lambda value: self.meter.admit(value),
            "_concat": self._concat,
            "_step": self._stepped,
        }

    def compile_limited(self, source: str) -> Template:
        """A jinja2.Template of the source.

        Raises:
            TemplateSyntaxError: not a template, or one that uses what is not supported.
        """
        instrument = _Instrument()
        tree = instrument.visit(self.parse(source))
        tree.set_environment(self)
        self._heaviest_body = instrument.heaviest_body
        return self.from_string(tree)

    # -- what compiled templates call ---------------------------------------------------------------------------------------------------

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.meter.step()
        if not isinstance(obj, _BUILTIN_TYPES):
            return super().getattr(obj, attribute)
        if isinstance(obj, str) and attribute == "format":
            return self._format_method(obj)
        if attribute in _METHODS.get(type(obj), ()):
            return getattr(obj, attribute)
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        # The tuples that groupby makes have two attributes.
        if isinstance(obj, tuple) and attribute in getattr(obj, "_fields", ()):
            return getattr(obj, attribute)
        return self.unsafe_undefined(obj, attribute) if hasattr(obj, attribute) else self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.step()
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.getattr(obj, argument) if isinstance(argument, str) else self.undefined(obj=obj, name=argument)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        raise SecurityError(f"the attribute {attribute!r} of a value of type {type(obj).__name__} is out of reach")

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.meter.step(self._heaviest_body if isinstance(function, Macro) else 1)
        if isinstance(function, BuiltinMethodType) and isinstance(function.__self__, str):
            self._estimate_method(function.__self__, function.__name__, args)
        return self.meter.admit(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.meter.step()
        if operator == "*":
            self._estimate_product(left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            self._estimate_percent(left, right)
        return self.meter.admit(super().call_binop(context, operator, left, right))

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a macro or a block wrote."""
        written = list(pieces)
        self.meter.charge(sum(map(len, written)))
        return "".join(written)

    @staticmethod
    @pass_context
    def _finalize(context: Context, value: Any) -> str:
        """Text of a value to be written. Taking the context keeps Jinja2 from calling it while it compiles."""
        meter: Meter = context.environment.meter  # type: ignore[attr-defined]
        meter.step()
        text = value if isinstance(value, str) else str(value)
        meter.charge(len(text))
        return text

    # -- internal filters ---------------------------------------------------------------------------------------------------------------

    def _turns(self, items: Any, weight: int) -> _Turns:
        return _Turns(items if isinstance(items, list) else self.meter.admit(iter(items)), weight, self.meter)

    def _concat(self, values: list[Any]) -> str:
        texts = [self._text(value) for value in values]
        self.meter.step()
        self.meter.charge(sum(map(len, texts)) + OBJECT_COST)
        return "".join(texts)

    def _text(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        text = str(value)
        self.meter.charge(len(text))
        return text

    def _stepped(self, value: Any) -> Any:
        self.meter.step()
        return value

    def _limited(self, function: Any) -> Callable[..., Any]:
        """A filter or test that takes a step, and whose result is admitted."""

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.meter.step()
            return self.meter.admit(function(*args, **kwargs))

        return limited

    # -- estimates ----------------------------------------------------------------------------------------------------------------------

    def _estimate_product(self, left: Any, right: Any) -> None:
        for value, count in ((left, right), (right, left)):
            if isinstance(value, str | bytes | list | tuple) and isinstance(count, int):
                self.meter.charge(len(value) * max(count, 0))

    def _estimate_percent(self, text: str, values: Any) -> None:
        if re.search(r"%[^%a-zA-Z]*\*", text):
            raise LimitError("a width that is itself a value is not supported")
        check_widths(number for widths in re.findall(r"%[^%a-zA-Z]*", text) for number in re.findall(r"\d+", widths))
        repeats = text.count("%") if isinstance(values, Mapping) else 1
        self.meter.charge(len(text) + repeats * self.meter.check_size(values))

    def _estimate_method(self, text: str, name: str, args: tuple[Any, ...]) -> None:
        if name in _PADDING:
            self.meter.charge(max((arg for arg in args if isinstance(arg, int)), default=0))
        elif name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
            self.meter.charge(replaced_size(text, args[0], args[1]))
        elif name == "join" and args:
            self.meter.charge(len(text) * len(args[0]) if isinstance(args[0], Collection) else 0)

    def _format_method(self, text: str) -> Callable[..., str]:
        def limited_format(*args: Any, **kwargs: Any) -> str:
            formatted: str = _Formatter(self).vformat(text, args, kwargs)
            return formatted

        return limited_format


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > MAX_RANGE:
        raise LimitError(f"a range has more than {MAX_RANGE} numbers")
    return numbers
