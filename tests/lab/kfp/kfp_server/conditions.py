"""The expressions of compiled pipelines: conditions of tasks and selectors of parts of a parameter.

The real server evaluates them as CEL. This is the part of CEL that the compiler writes: literals, names, `a.b`, `a["b"]`,
calls of string, int, double, bool, size and parseJson, comparisons, `in`, `!`, `&&`, `||` and `? :`. As there, values of
different sorts are unequal, and ordering them is an error.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .values import kind, text

_TOKEN = re.compile(
    r"""\s*(?: (?P<number>\d+\.\d*(?:[eE][+-]?\d+)?|\d+(?:[eE][+-]?\d+)?|\.\d+)
        | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
        | (?P<name>[A-Za-z_]\w*)
        | (?P<sign>==|!=|<=|>=|&&|\|\||[-+*/%<>!()\[\].,?:]) )""",
    re.VERBOSE,
)
_COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_LITERALS = {"true": True, "false": False, "null": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class ExpressionError(Exception):
    """An expression that cannot be evaluated."""


def condition(expression: str, parameters: Mapping[str, Any]) -> bool:
    """Whether a task with these inputs shall run."""
    value = evaluate(expression, {"inputs": {"parameter_values": dict(parameters)}})
    if not isinstance(value, bool):
        raise ExpressionError(f"{expression!r} gives no truth value but {value!r}")
    return value


def select(expression: str, value: Any) -> Any:
    """The part of a value that a selector names: `parseJson(string_value)["n"]`."""
    names = {"number": "number_value", "bool": "bool_value", "list": "list_value", "struct": "struct_value"}
    fields = {names[kind(value)]: value} if kind(value) in names else {}
    return evaluate(expression, {**fields, "string_value": text(value)})


def evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression."""
    try:
        return _Parser(expression, names).whole()
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ExpressionError(f"{expression!r} cannot be evaluated: {error}") from error


class _Parser:
    """Evaluates while it reads. What a `&&`, `||` or `?` leaves out is read without being evaluated (`self._off`)."""

    def __init__(self, expression: str, names: Mapping[str, Any]) -> None:
        self._tokens = list(_tokens(expression))
        self._names = names
        self._at = 0
        self._off = 0

    def whole(self) -> Any:
        value = self._choice()
        if self._at < len(self._tokens):
            raise ValueError(f"unexpected {self._tokens[self._at][1]!r}")
        return value

    def _accept(self, *signs: str) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at][0] != "string":
            token = self._tokens[self._at][1]
            if token in signs:
                self._at += 1
                return str(token)
        return ""

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise ValueError(f"{sign!r} is missing")

    def _without(self, unless: bool, read: Callable[[], Any]) -> Any:
        """Read something that counts only if `unless` holds."""
        self._off += not unless
        value = read()
        self._off -= not unless
        return value

    def _choice(self) -> Any:
        value = self._either()
        if not self._accept("?"):
            return value
        first = self._without(self._off > 0 or _truth(value), self._choice)
        self._expect(":")
        second = self._without(self._off > 0 or not _truth(value), self._choice)
        return None if self._off else first if value else second

    def _either(self) -> Any:
        value = self._both()
        while self._accept("||"):
            decided = self._off == 0 and _truth(value)
            other = self._without(not decided, self._both)
            value = None if self._off else decided or _truth(other)
        return value

    def _both(self) -> Any:
        value = self._comparison()
        while self._accept("&&"):
            decided = self._off == 0 and not _truth(value)
            other = self._without(not decided, self._comparison)
            value = None if self._off else not decided and _truth(other)
        return value

    def _comparison(self) -> Any:
        value = self._unary()
        while sign := self._accept("==", "!=", "<=", ">=", "<", ">", "in"):
            other = self._unary()
            if not self._off:
                value = _compare(sign, value, other)
        return value

    def _unary(self) -> Any:
        if self._accept("!"):
            value = self._unary()
            return None if self._off else not _truth(value)
        if self._accept("-"):
            value = self._unary()
            return None if self._off else -value
        return self._member()

    def _member(self) -> Any:
        value = self._primary()
        while sign := self._accept(".", "["):
            if sign == ".":
                key: Any = self._tokens[self._at][1]
                self._at += 1
            else:
                key = self._choice()
                self._expect("]")
            if not self._off:
                value = value[int(key) if isinstance(value, list) else key]
        return value

    def _primary(self) -> Any:
        if self._accept("("):
            value = self._choice()
            self._expect(")")
            return value
        if self._at >= len(self._tokens):
            raise ValueError("it ends too early")
        sort, token = self._tokens[self._at]
        self._at += 1
        if sort in ("number", "string"):
            return token
        if sort == "sign":
            raise ValueError(f"unexpected {token!r}")
        if token in _LITERALS:
            return _LITERALS[token]
        if self._accept("("):
            argument = self._choice()
            self._expect(")")
            return None if self._off else _call(token, argument)
        if self._off:
            return None
        if token not in self._names:
            raise ValueError(f"there is no {token}")
        return self._names[token]


def _tokens(expression: str) -> Iterator[tuple[str, Any]]:
    at = 0
    rest = expression.rstrip()
    while at < len(rest):
        match = _TOKEN.match(rest, at)
        if not match:
            raise ValueError(f"unexpected {rest[at:].strip()[:20]!r}")
        at = match.end()
        sort = str(match.lastgroup)
        token: Any = match[sort]
        if sort == "number":
            token = float(token) if re.search(r"[.eE]", token) else int(token)
        elif sort == "string":
            token = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), token[1:-1])
        yield sort, token


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is no truth value")
    return value


def _compare(sign: str, one: Any, other: Any) -> bool:
    if sign == "in":
        return one in other
    alike = kind(one) == kind(other)
    if sign in ("==", "!="):
        return (alike and one == other) is (sign == "==")
    if not alike or kind(one) not in ("number", "string", "bool"):
        raise TypeError(f"{one!r} and {other!r} have no order")
    return bool(_COMPARISONS[sign](one, other))


def _call(name: str, argument: Any) -> Any:
    if name == "parseJson":
        return json.loads(argument)
    if name == "string":
        return text(argument)
    if name == "size":
        return len(argument)
    if name == "bool" and argument in ("true", "false", True, False):
        return argument in ("true", True)
    if name in ("int", "double"):
        return (int if name == "int" else float)(argument)
    raise ValueError(f"there is no {name}({argument!r})")
