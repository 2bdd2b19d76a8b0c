"""Edge lists as text: an edge a line, in whatever form people write them. NumPy parses them."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice
from typing import Any

import numpy as np

from hag_plugin.data.edges import LARGER, Edges, counted, ends, from_floats, from_names, whole
from hag_plugin.data.graph_data import MAX_ID
from hag_plugin.data.source import Source
from hag_plugin.files import DatasetError
from hag_plugin.limits import limits

COMMENTS = ("#", "%", "//")
SEPARATORS = ("\t", ";", "|", ",", None)  # None: blanks
SEPARATOR_NAMES = {"\t": "tab", None: "blank"}
SPECIAL = re.compile(r"[#%/\"']")  # comments and quotes
SAMPLE = 200  # lines that tell the form
FOREIGN = (
    (r"<\?xml|<graphml|<gexf|<!doctype|<html", "XML or HTML"),
    (r"[{\[]", "JSON"),
    (r"\*(vertices|network|arcs|edges)", "Pajek's format"),
    (r"graph\s*\[|creator\s+\"", "GML"),
    (r"(strict\s+)?(di)?graph\b.*\{", "DOT"),
)
DIMACS = re.compile(r"^p\s+(edge|col|sp|max|min|asn)\s", re.MULTILINE)
TRAILING_COMMENT = re.compile(r"\s#.*")
UNDIRECTED = re.compile(r"\bundirected\b|^%\s*sym\b", re.IGNORECASE | re.MULTILINE)
BIPARTITE = re.compile(r"^%\s*bip\b", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Form:
    """How an edge list is written.

    Attributes:
        separator: between columns; None for blanks.
        quote: around texts.
        header: names of the columns, or None.
        first_is_header: whether the first line that is no comment is the header.
        columns: how many; 0 where a free text may follow the ids.
        picks: the columns of source and target.
        score: how many of the first lines it fits.
    """

    separator: str | None
    quote: str
    header: list[str] | None
    first_is_header: bool
    columns: int
    picks: tuple[int, ...]
    score: int

    def plain(self, line: str) -> str:
        """A line as NumPy reads it: no comment at its end, no blanks before a quote."""
        if self.separator is None:
            return TRAILING_COMMENT.sub("", line) if "#" in line else line
        if self.quote not in line:
            return line
        separator = self.separator
        parts = re.split(f"{re.escape(separator)}[ \t]+(?={self.quote})", line.strip(" "))
        return separator.join(parts)

    def fields(self, line: str) -> list[str]:
        """The columns of a line."""
        return _split(line, self.separator, self.quote)


def read_edge_list(source: Source, head: str, *, relabel: bool) -> Edges:
    """The edges of a text.

    Args:
        source: the file.
        head: its first lines.
        relabel: whether ids may be texts.

    Raises:
        DatasetError: it is no edge list; the first line that is wrong is named.
    """
    sample = [text for _, text in islice(data_lines(iter(head.split("\n"))), SAMPLE)]
    if not sample:
        return Edges(np.zeros((2, 0), np.int64), _words(source, None, 0, ""), lambda _: "")
    kinds = [kind for pattern, kind in FOREIGN if re.match(pattern, sample[0].strip().lower())]
    if DIMACS.search(head):
        kinds.append("DIMACS")
    for kind in kinds:
        raise DatasetError(
            f"{source.name} is {kind}, which is not read; expected an edge list, which "
            "networkx.write_edgelist makes of it"
        )
    if BIPARTITE.search(head):
        raise DatasetError(f"{source.name} is bipartite ('% bip'); expected one set of nodes")
    form = form_of(sample, head)
    if form is None:
        raise wrong_line(source, None, relabel, "no separator was found")
    pairs, named = _parse(source, form, relabel)
    notes = _size_line(head, pairs)

    where = partial(place_of, source, form)
    return Edges(
        pairs,
        _words(source, form, pairs.shape[1], notes),
        where,
        named=named,
        says_undirected=bool(UNDIRECTED.search(head)),
    )


def data_lines(lines: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Lines that are neither empty nor comments, and their numbers."""
    for number, line in enumerate(lines, 1):
        text = line.lstrip()
        if text and not text.startswith(COMMENTS):
            yield number, line


def _edges_of(source: Source, form: Form) -> Iterator[tuple[int, str]]:
    """The lines of edges, and their numbers."""
    with source.text() as file:
        lines = data_lines(iter(file))
        if form.first_is_header:
            next(lines, None)
        for number, line in lines:
            yield number, form.plain(line.rstrip("\n"))


def blocks_of(source: Source, form: Form) -> Iterator[list[str]]:
    """The same lines, many at a time: fast where they are numbers and separators only."""
    with source.text() as file:
        header, rest, block = form.first_is_header, "", " "
        while block:
            block = file.read(limits.read_characters)
            text = rest + block
            lines = text.split("\n")
            rest = lines.pop() if block else ""
            if SPECIAL.search(text):
                lines = [form.plain(line) for _, line in data_lines(iter(lines))]
            else:
                lines = [line for line in lines if line and not line.isspace()]
            if header and lines:
                header = False
                del lines[0]
            yield lines


def place_of(source: Source, form: Form, edge: int) -> str:
    """Where an edge stands, and what is there, for an error."""
    number, text = next(islice(_edges_of(source, form), edge, None))
    return f"{source.name}, line {number}: {text.strip()[:60]!r}"


# The form ---------------------------------------------------------------------------------------


def _split(line: str, separator: str | None, quote: str) -> list[str]:
    line = line.rstrip("\n")
    if separator is None:
        line = TRAILING_COMMENT.sub("", line)
        if quote not in line:
            return line.split()
        return [field.strip(quote) for field in re.findall(f"{quote}[^{quote}]*{quote}|\\S+", line)]
    if quote not in line:
        return [field.strip() for field in line.split(separator)]
    row = next(csv.reader([line], delimiter=separator, quotechar=quote, skipinitialspace=True))
    return [field.strip() for field in row]


def form_of(sample: list[str], head: str) -> Form | None:
    """The form that fits most of the lines; the first of those that fit as many."""
    quote = "'" if sample[0].lstrip().startswith("'") else '"'
    forms = (_try(sample, head, separator, quote) for separator in SEPARATORS)
    return max((f for f in forms if f is not None), key=lambda form: form.score, default=None)


def _try(sample: list[str], head: str, separator: str | None, quote: str) -> Form | None:
    rows = [_split(line, separator, quote) for line in sample]
    titled = rows[0][:1] and whole(rows[0][0]) is None  # as far as one line tells
    body = (rows[1:] or rows) if titled else rows
    columns, _ = Counter(map(len, body)).most_common(1)[0]
    if separator is None and max(map(len, rows)) > 2 and _has_free_text(body):
        columns = 0
    elif columns < 2:
        return None
    header = _header(rows, columns) or None
    first_is_header = header is not None
    if header is None:
        header = _commented_header(head, sample[0], separator, quote, columns)
    picks = _picks(header)
    fitting = [row for row in body if len(row) > max(picks) and columns in (0, len(row))]
    score = sum(all(whole(row[pick]) is not None for pick in picks) for row in fitting)
    return Form(separator, quote, header, first_is_header, columns, picks, score)


def _has_free_text(body: list[list[str]]) -> bool:
    """Whether what follows the ids has blanks of its own, as in `0 1 {'weight': 3}`.

    Lines of whole numbers and of different lengths are no edge list but nodes with neighbours.
    """
    widths = set(map(len, body))
    return len(widths) > 1 and any(whole(field) is None for row in body for field in row[2:])


def _header(rows: list[list[str]], columns: int) -> list[str] | None:
    """The first line, if it holds names of columns and not an edge."""
    first = rows[0]
    if columns not in (0, len(first)) or len(first) < 2:
        return None
    if ends(first) is not None and not any(whole(field) is not None for field in first):
        return first
    named = not first[0] or not any(whole(field) is not None for field in first)
    picks = _picks(first)
    follows = len(rows) > 1 and all(
        len(rows[1]) > pick and whole(rows[1][pick]) is not None for pick in picks
    )
    return first if named and follows else None


def _commented_header(
    head: str, first: str, separator: str | None, quote: str, columns: int
) -> list[str] | None:
    """Names of columns in the last comment before the edges; only names that say which is which."""
    lines = head.split("\n")
    before = [line for line in lines[: lines.index(first)] if line.strip()]
    if not before:
        return None
    names = _split(before[-1].strip().lstrip("#%/ "), separator, quote)
    return names if len(names) == columns and ends(names) is not None else None


def _picks(header: list[str] | None) -> tuple[int, int]:
    if header is None:
        return 0, 1
    by_name = ends(header)
    if by_name is not None:
        return by_name
    return (1, 2) if not header[0] and len(header) > 2 else (0, 1)  # unnamed: numbers of rows


# The edges --------------------------------------------------------------------------------------


def _parse(source: Source, form: Form, relabel: bool) -> tuple[np.ndarray, bool]:
    """int64 `[2, E]`, and whether the ids were numbered here."""
    try:
        return _load(source, form, np.int64), False
    except (ValueError, OverflowError) as e:
        if isinstance(e, DatasetError):
            raise
    try:
        numbers = from_floats(_load(source, form, np.float64))
    except (ValueError, OverflowError) as e:
        if isinstance(e, DatasetError):
            raise
        numbers = None
    if numbers is not None:
        return numbers, False
    if not relabel:
        raise wrong_line(source, form, relabel, "ids are not all node ids")
    codes: defaultdict[str, int] = defaultdict(count().__next__)
    try:
        pairs = _load(source, form, np.int64, converters=codes.__getitem__)
    except (ValueError, OverflowError) as e:
        if isinstance(e, DatasetError):
            raise
        raise wrong_line(source, form, relabel, str(e)) from e

    where = partial(place_of, source, form)
    return from_names(pairs, list(codes), where, relabel)


def _load(source: Source, form: Form, dtype: Any, converters: Any = None) -> np.ndarray:
    """Numbers `[2, E]` of the picked columns.

    Raises:
        ValueError: NumPy can't read a line.
    """
    lines = 0

    def read() -> Iterator[list[str]]:
        nonlocal lines
        for block in blocks_of(source, form):
            lines += len(block)
            yield block

    options: dict[str, Any] = {"delimiter": form.separator, "quotechar": form.quote}
    if converters is not None:
        options["converters"] = dict.fromkeys(form.picks, converters)
    stream = chain.from_iterable(read())
    first = next(stream, None)
    if first is None:
        return np.zeros((2, 0), dtype)
    stream = chain([first], stream)
    options |= {"comments": None, "encoding": None, "ndmin": 1}
    if form.columns:  # every line has all of them; what is not picked is one character each
        fields = [(str(i), dtype if i in form.picks else "U1") for i in range(form.columns)]
        table = np.loadtxt(stream, dtype=fields, **options)
        pairs = np.stack([table[str(pick)] for pick in form.picks])
    else:
        options["ndmin"] = 2
        pairs = np.loadtxt(stream, dtype=dtype, usecols=form.picks, **options).T
    if pairs.shape[1] != lines:
        raise DatasetError(
            f"{source.name}: {lines} lines but {pairs.shape[1]} edges; expected every quote "
            f"{form.quote} to end in its line"
        )
    return np.ascontiguousarray(pairs)


def wrong_line(source: Source, form: Form | None, relabel: bool, otherwise: str) -> DatasetError:
    """What is wrong with the first line that is."""
    form = form or Form(None, '"', None, False, 0, (0, 1), 0)
    for number, text in _edges_of(source, form):
        fields = form.fields(text)
        place = f"{source.name}, line {number}: {text.strip()[:60]!r}"
        if text.count(form.quote) % 2:
            return DatasetError(f"{place}; expected the quote {form.quote} to end in its line")
        if len(fields) < 2:
            return DatasetError(f"{place}; expected two node ids")
        if form.columns and len(fields) != form.columns:
            return DatasetError(
                f"{place} has {len(fields)} columns; expected {form.columns}, as in the lines "
                "around it (an edge a line, not a node with its neighbours)"
            )
        ids = [fields[pick] for pick in form.picks if pick < len(fields)]
        if not relabel and any(whole(text) is None for text in ids):
            named = all(text and whole(text) is None for text in ids)
            hint = " (--relabel numbers names)" if named else ""
            return DatasetError(f"{place}; expected two node ids{hint}")
        if not relabel and any(not 0 <= (whole(text) or 0) <= MAX_ID for text in ids):
            return DatasetError(f"{place}; expected ids from 0 to {MAX_ID} {LARGER}")
    return DatasetError(f"{source.name}: {otherwise}; expected two node ids a line")


# Words ------------------------------------------------------------------------------------------


def _words(source: Source, form: Form | None, edges: int, notes: str) -> str:
    packing = f"{source.packing}, " if source.packing else ""
    if form is None:
        return f"{source.name} read as: {packing}an edge list without edges"
    separator = SEPARATOR_NAMES.get(form.separator, repr(form.separator))
    parts = [f"{source.name} read as: {packing}an edge list, {separator}-separated"]
    if form.header is not None:
        names = [form.header[pick] for pick in form.picks]
        parts.append(f"header {(form.separator or ' ').join(form.header)!r}")
        if any(names):
            parts.append(f"source {names[0]!r}, target {names[1]!r}")
    if form.columns > 2:
        parts.append("other columns ignored")
    elif not form.columns:
        parts.append("what follows two ids ignored")
    return ", ".join([*parts, counted(edges, "edge")]) + notes


def _size_line(head: str, pairs: np.ndarray) -> str:
    """That the first line may hold the numbers of nodes and edges."""
    if pairs.shape[1] > 2:
        nodes, edges = pairs[:, 0].tolist()
        if edges == pairs.shape[1] - 1 and nodes > int(pairs[:, 1:].max()):
            return (
                f"; its first line, {nodes} {edges}, is read as an edge: delete it if it is the "
                "numbers of nodes and edges"
            )
    return ""
