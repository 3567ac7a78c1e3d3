"""Translates the names of a state dict, and where packages lay tensors out differently, the tensors.

A rule pairs two templates, ours and theirs. In braces stand a letter that is filled with the same text on both sides,
`{i}`, `{j}`, `{n}` a number, `{p}` weight or bias, `{m}` a name, `{r}` the rest; `{i+1}` a number that is one higher.
Two names on one side, such as query and key-value, are parts of the one tensor on the other.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

KINDS = {'i': r'\d+', 'j': r'\d+', 'n': r'\d+', 'p': 'weight|bias', 'm': r'\w+', 'r': '.+'}
PLACE = re.compile(r'\{(\w)(?:\+(\d))?\}')
Change = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Rule:
    """One pair of templates.

    Attributes:
        ours, theirs: A template, or several whose tensors stand one above the other in that of the other side.
        change: How their tensor becomes ours, and ours theirs, where not as it is.
        shares: Relative heights of the parts.
    """

    ours: str | tuple[str, ...]
    theirs: str | tuple[str, ...]
    change: Change | None = None
    shares: tuple[int, ...] = (1, 2)  # query; key and value


def rules(*pairs: tuple) -> tuple[Rule, ...]:
    """Rules of (ours, theirs) or (ours, theirs, change); of several that match a name the first counts."""
    return tuple(Rule(*pair) for pair in pairs)


@cache
def compiled(template: str) -> tuple[re.Pattern, dict[str, int]]:
    """A pattern with a group for each letter, and what a number is higher by than its letter."""
    text, shifts, end = '', {}, 0
    for place in PLACE.finditer(template):
        text += re.escape(template[end:place.start()]) + f'(?P<{place[1]}>{KINDS[place[1]]})'
        shifts[place[1]], end = int(place[2] or 0), place.end()
    return re.compile(text + re.escape(template[end:])), shifts


def match(template: str, name: str) -> dict[str, str | int] | None:
    """What stands for each letter, or None."""
    pattern, shifts = compiled(template)
    found = pattern.fullmatch(name)
    if found is None:
        return None
    values = {letter: int(text) - shifts[letter] if letter in 'ijn' else text
              for letter, text in found.groupdict().items()}
    return None if any(isinstance(value, int) and value < 0 for value in values.values()) else values


def fill(template: str, values: dict[str, str | int]) -> str:
    return PLACE.sub(lambda place: str(values[place[1]] + int(place[2]) if place[2] else values[place[1]]), template)


def sides(rule: Rule, to_ours: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The templates to translate from, and to."""
    pair = tuple((side, ) if isinstance(side, str) else side for side in (rule.ours, rule.theirs))
    return pair[::-1] if to_ours else pair


def find(name: str, table: Iterable[Rule], to_ours: bool) -> tuple[Rule, int, dict] | None:
    """The rule for a name, which of its parts the name is, and what stands for the letters."""
    for rule in table:
        for part, template in enumerate(sides(rule, to_ours)[0]):
            values = match(template, name)
            if values is not None:
                return rule, part, values
    return None


def translate(state: dict[str, Tensor], table: Iterable[Rule], to_ours: bool = True
              ) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict under other names, and the names for which there is no rule.

    Args:
        to_ours: From theirs to ours, or the other way.
    """
    known, unknown, parts = {}, [], {}
    for name, tensor in state.items():
        found = find(name, table, to_ours)
        if found is None:
            unknown.append(name)
            continue
        rule, part, values = found
        sources, targets = sides(rule, to_ours)
        names = [fill(target, values) for target in targets]
        if len(sources) > 1:
            held = parts.setdefault(names[0], {})
            held[part] = name
            if len(held) == len(sources):
                known[names[0]] = torch.cat([state[held[i]] for i in range(len(sources))])
        elif len(names) > 1:
            unit = len(tensor) // sum(rule.shares)
            if unit * sum(rule.shares) != len(tensor):
                unknown.append(name)
                continue
            known.update(zip(names, tensor.split([unit * share for share in rule.shares]), strict=True))
        else:
            known[names[0]] = tensor if rule.change is None else rule.change[0 if to_ours else 1](tensor)
    unknown += [name for target, held in parts.items() if target not in known for name in held.values()]
    return known, unknown


def count_levels(state: dict[str, Tensor], prefix: str) -> int:
    """How many numbers, from 0, follow a prefix in the names of a state dict."""
    levels = (name[len(prefix):].split('.')[0] for name in state if name.startswith(prefix))
    return 1 + max((int(level) for level in levels if level.isdecimal()), default=-1)
