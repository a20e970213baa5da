"""YAML with the position of every value: a recipe as a tree of marked values.

The reader follows YAML 1.2's core rules, where PyYAML follows 1.1: `5e-3` is a number, `no` and
`12:30` are text. Duplicate keys, aliases and tags are refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from hpdm_core.errors import RecipeError
from hpdm_core.names import is_unicode

Plain = None | bool | int | float | str | list | dict

_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_COMMON = [f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")]
_SCALARS = {
    _NULL: (re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    _BOOL: (re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    _INT: (re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    _FLOAT: (
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
        list("-+.0123456789"),
    ),
}
# Limits that no recipe needs to exceed; beyond them parsing takes minutes or overflows the stack.
MOST_CHARACTERS, MOST_DEPTH, MOST_DIGITS = 100_000, 16, 18


@dataclass(frozen=True, kw_only=True)
class Marked:
    """A value and where it was written.

    Args:
        value: a scalar, a list of plain values, or a dict of further `Marked`.
        where: `file:line:column`, or the override it came from.
        text: a scalar as it was written, before it became a number or true/false.
    """

    value: Plain | dict[str, "Marked"]
    where: str
    text: str | None = None

    def plain(self) -> Plain:
        """Return the value without marks; lists become tuples, as the schema has them."""
        return _plain(self.value)

    def at(self, path: tuple) -> "Marked":
        """Return the deepest value on `path` that was written."""
        found = self
        for key in path:
            if not isinstance(found.value, dict) or key not in found.value:
                break
            found = found.value[key]
        return found

    def set(self, path: tuple[str, ...], child: "Marked") -> "Marked":
        """Return a copy with `child` at `path`; missing sections are created."""
        if not path:
            return child
        children = dict(self.value) if isinstance(self.value, dict) else {}
        empty = Marked(value={}, where=child.where)
        children[path[0]] = children.get(path[0], empty).set(path[1:], child)
        return Marked(value=children, where=self.where)

    def merge(self, other: "Marked") -> "Marked":
        """Return this tree overridden by `other`'s values; sections are merged, lists replaced."""
        if not isinstance(self.value, dict) or not isinstance(other.value, dict):
            return other
        children = dict(self.value)
        for key, child in other.value.items():
            children[key] = children[key].merge(child) if key in children else child
        return Marked(value=children, where=other.where)


def parse(text: str, source: str) -> tuple[Marked, list[str]]:
    """Read one YAML document.

    Returns:
        The tree, and problems that did not stop the parser (duplicate keys).

    Raises:
        RecipeError: the text is not YAML, or holds an alias, a tag, or more than a recipe may.
    """
    if len(text) > MOST_CHARACTERS:
        raise RecipeError(
            f"{source} is too long for a recipe",
            got=f"{len(text):,} characters",
            expected=f"at most {MOST_CHARACTERS:,}",
        )
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RecipeError(f"{_where(source, mark)}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{source}: not valid YAML: {error}") from error
    except ValueError as error:  # PyYAML's own, of numbers in escapes and directives
        raise RecipeError(f"{source}: not valid YAML: {str(error)[:80]}") from error
    if node is None:
        return Marked(value={}, where=f"{source}:1:1"), []
    problems: list[str] = []
    return _marked(node, source, problems), problems


def parse_scalar(text: str) -> Plain:
    """Return the value of a bare word: a number, true/false, nothing, or the text itself."""
    tag = _Resolver().resolve(yaml.ScalarNode, text, (True, False))
    return text if _scalar_problem(text, tag) else _scalar(text, tag)


def dump(values: dict) -> str:
    """Write plain values as YAML that `parse` reads back to the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100)


class _Resolver(yaml.resolver.BaseResolver):
    """YAML 1.2's core rules for bare words."""


class _Loader(
    yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, _Resolver
):
    """Composes nodes and constructs nothing: no tag can make an object."""

    def __init__(self, stream: str) -> None:
        yaml.reader.Reader.__init__(self, stream)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        _Resolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not used in recipes"
        elif self._depth >= MOST_DEPTH:
            problem = f"sections or lists lie more than {MOST_DEPTH} deep in each other"
        if problem is not None:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 or 1.1 would take for something else, so that every tool agrees."""

    def ignore_aliases(self, data: object) -> bool:
        return True  # equal lists are written out, as `parse` takes no aliases


for _tag, (_pattern, _first) in _SCALARS.items():
    _Resolver.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)


def _marked(node: yaml.Node, source: str, problems: list[str]) -> Marked:
    _refuse_tag(node, source)
    where = _where(source, node.start_mark)
    if isinstance(node, yaml.MappingNode):
        children: dict[str, Marked] = {}
        for key, child in _pairs(node, source):
            if key.value in children:
                first = children[key.value].where
                problems.append(
                    f"{_where(source, key.start_mark)}: duplicate key '{key.value}'; "
                    f"it is already at {first}; remove one"
                )
                continue
            marked = _marked(child, source, problems)
            # The position of the key, which is what the user looks for.
            place = _where(source, key.start_mark)
            children[key.value] = Marked(value=marked.value, where=place, text=marked.text)
        return Marked(value=children, where=where)
    value = _value(node, source)
    text = node.value if isinstance(node, yaml.ScalarNode) else None
    return Marked(value=value, where=where, text=text)


def _pairs(node: yaml.MappingNode, source: str) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeError(f"{_where(source, key.start_mark)}: a key must be a word")
        if not is_unicode(key.value):
            raise RecipeError(f"{_where(source, key.start_mark)}: a key holds a lone surrogate")
        yield key, child


def _value(node: yaml.Node, source: str) -> Plain:
    _refuse_tag(node, source)
    if isinstance(node, yaml.MappingNode):
        return {key.value: _value(child, source) for key, child in _pairs(node, source)}
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, source) for item in node.value]
    if problem := _scalar_problem(node.value, node.tag):
        raise RecipeError(f"{_where(source, node.start_mark)}: {problem}")
    return _scalar(node.value, node.tag)


def _refuse_tag(node: yaml.Node, source: str) -> None:
    if node.tag not in (*_SCALARS, *_COMMON):
        raise RecipeError(
            f"{_where(source, node.start_mark)}: tag '{node.tag}' is not used in recipes; remove it"
        )


def _scalar_problem(text: str, tag: str) -> str | None:
    """Return why a scalar is invalid for its tag: `!!float x`, or a number with too many digits."""
    if not is_unicode(text):
        return "text with a lone surrogate"
    if tag in _SCALARS and not _SCALARS[tag][0].match(text):
        return f"'{text[:60]}' is no {tag.rpartition(':')[2]}"
    if tag == _INT and len(text.lstrip("+-0")) > MOST_DIGITS:
        return f"a whole number of {len(text)} digits; expected at most {MOST_DIGITS}"
    return None


def _scalar(text: str, tag: str) -> Plain:
    """Return the value of a valid scalar."""
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _INT:
        return int(text)
    return float(text) if tag == _FLOAT else text


def _plain(value: object) -> Plain | tuple:
    if isinstance(value, Marked):
        return value.plain()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return tuple(_plain(item) for item in value) if isinstance(value, list) else value


def _where(source: str, mark: yaml.Mark | None) -> str:
    return source if mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
