"""What forgotten jobs left: of each dataset, the rules that their wishes come to.

A journal is full of forgotten jobs and hardly anybody asks, so wishes are only kept here until somebody does, or until they are
so many that it is time to normalise them. When that happens cannot be told from what `of` returns: rules normalised twice
are the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable

from stoker.framework.core.rules import Rules, normalise_rules, wishes

Wish = tuple[int, bool, tuple[str, ...]]  # dataset id, wanted or freed, paths (none: everything)
LOOSE_MAX = 64  # wishes of a dataset that are kept as they come, and paths of one of them


class BaseRules:
    """Rules by dataset id. None, (): no forgotten job wished anything."""

    def __init__(self, known: Iterable[tuple[int, Rules]] = ()) -> None:
        self._rules: dict[int, Rules] = dict(known)
        self._loose: dict[int, list[tuple[bool, tuple[str, ...]]]] = {}  # wishes that came after them

    def of(self, dataset_id: int) -> Rules:
        """Return the dataset's rules, normalised."""
        rules, loose = self._rules.get(dataset_id, ()), self._loose.pop(dataset_id, None)
        if loose is not None:
            more = (rule for is_wanted, paths in loose for rule in wishes(is_wanted, paths))
            self._rules[dataset_id] = rules = normalise_rules((*rules, *more))
        return rules

    def add(self, wished: Iterable[Wish]) -> None:
        """Let what each of them names be wanted, or freed, from then on."""
        for dataset_id, is_wanted, paths in wished:
            if not paths:
                self._loose.pop(dataset_id, None)
                self._rules[dataset_id] = _ALL[is_wanted]
                continue
            loose = self._loose.get(dataset_id)
            if loose is None:
                loose = self._loose[dataset_id] = []
            loose.append((is_wanted, paths))
            if len(loose) > LOOSE_MAX or len(paths) > LOOSE_MAX:
                self.of(dataset_id)

    def forget(self, dataset_id: int) -> None:
        """The dataset is removed."""
        self._rules.pop(dataset_id, None)
        self._loose.pop(dataset_id, None)

    def all(self) -> list[tuple[int, Rules]]:
        """Return (dataset id, its rules) of all that have some, by id."""
        return [(dataset_id, self.of(dataset_id)) for dataset_id in sorted({*self._rules, *self._loose})]

    def copy(self) -> BaseRules:
        twin = BaseRules(self._rules.items())
        twin._loose = {dataset_id: loose.copy() for dataset_id, loose in self._loose.items()}
        return twin


_ALL: dict[bool, Rules] = {True: ((True, ""),), False: ((False, ""),)}
