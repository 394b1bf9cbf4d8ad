"""The runs that a report is of: where their parts lie, what they say of themselves, whether all are there."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tuco_vllm.analysis.parts import metadata_of, opened_part, part_names
from tuco_vllm.errors import InputError
from tuco_vllm.records import RUN_FILE, SUCCESS
from tuco_vllm.store import Store, store_at

_URL_SECRETS = re.compile(r"(?<=://)[^/\s@]*@|(?<=\?)\S*=\S*")


@dataclass
class Source:
    """One DIR|URL."""

    label: str
    store: Store
    parts: list[str]
    unfinished: str | None
    """What to say of a run that has not ended, or None."""
    columns: list[str]
    """Of the first part: the fixed ones and the input's own."""
    facts: dict[str, set[str]] = field(default_factory=dict)
    """Metadata of its parts, by name; several values where parts differ, as they do in ``ft``."""

    def fact(self, name: str) -> str:
        """A metadata value, several in one; "" where there is none."""
        return ", ".join(sorted(self.facts.get(name, ())))

    def add_facts(self, said: dict[str, str]) -> None:
        """Take a part's metadata."""
        for name, value in said.items():
            if len(known := self.facts.setdefault(name, set())) < 20:
                known.add(_without_secrets(value))


def open_sources(places: Sequence[str]) -> list[Source]:
    """The runs, in order. Raises InputError for a place that holds no parts of a run."""
    labels = _labels(places)
    sources: list[Source] = []
    for place, label in zip(places, labels, strict=True):
        store = store_at(place)
        if store.folder is not None and store.folder.is_file():
            raise InputError(f"{place} is a file: name the directory that a tuco score wrote")
        if not (parts := part_names(store)):
            raise InputError(f"{store.where} holds no scored rows: name the --out of a tuco score")
        if any(source.store.where == store.where for source in sources):
            raise InputError(f"{store.where} is named twice")
        with opened_part(store, parts[0]) as part:
            columns = list(part.schema_arrow.names)
            source = Source(label, store, parts, _unfinished(store), columns)
            source.add_facts(metadata_of(part))
        sources.append(source)
    return sources


def _unfinished(store: Store) -> str | None:
    if store.read(SUCCESS) is not None:
        return None
    try:
        counts = json.loads(store.read(RUN_FILE) or b"{}")["counts"]
        return f"{int(counts['rows_committed']):,} of {int(counts['rows_total']):,} rows are there"
    except (ValueError, KeyError, TypeError):
        return "how many rows are to come is not known"


def _labels(places: Sequence[str]) -> list[str]:
    """As much of each place's end as tells them apart."""
    split = [
        [each for each in (place if "://" in place else os.path.abspath(place)).split("/") if each]
        for place in places
    ]
    for count in range(1, max(map(len, split), default=1) + 1):
        labels = ["/".join(parts[-count:]) or str(Path("/")) for parts in split]
        if len(set(labels)) == len(labels):
            break
    return labels


def _without_secrets(text: str) -> str:
    """A text of a command or a place, without what in its URLs may be a key."""
    return _URL_SECRETS.sub("…", text)
