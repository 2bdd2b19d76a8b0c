"""Graphs from files as people have them: what is read is what was written, or it is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hag_plugin.cli import main
from hag_plugin.data import datasets
from hag_plugin.files import DatasetError
from hag_plugin.testing import limits

Pairs = list[tuple[int, int]]


def examples(number: int = 15) -> Any:
    """So many examples; each test's folder serves all of them."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=number, suppress_health_check=checks)


node = st.integers(0, 40)
some_edges = st.lists(st.tuples(node, node), max_size=12)
edges_there = st.lists(st.tuples(node, node), min_size=1, max_size=12)


def read(path: Path, **options: Any) -> Pairs:
    return [tuple(pair) for pair in datasets.load(path, **options).edge_index.T.tolist()]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Text -------------------------------------------------------------------------------------------

SEPARATORS = {"blank": " ", "blanks": "   ", "tab": "\t", "comma": ",", "comma and blank": ", ",
              "semicolon": ";", "bar": "|"}  # fmt: skip
IDS: dict[str, Callable[[int], str]] = {
    "plain": str, "float": "{}.0".format, "quoted": '"{}"'.format, "plus": "+{}".format,
    "zeros": "{:05d}".format, "exponent": "{}e0".format, "quoted float": '"{}.00"'.format,
}  # fmt: skip
EXTRA: dict[str, Callable[[int], list[str]]] = {
    "none": lambda i: [],
    "weight": lambda i: [f"{i / 4}"],
    "time and text": lambda i: [f"{1700000000 + i}", "abc"],
    "empty": lambda i: [""],
}
ENDS = {"newline": "\n", "DOS": "\r\n", "old Mac": "\r"}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")
AROUND: dict[str, Callable[[list[str]], list[str]]] = {
    "nothing": lambda lines: lines,
    "comments": lambda lines: ["# a,b;c", "% 1 2", "// x", *lines[:1], "#1 2", *lines[1:]],
    "blank lines": lambda lines: ["", *[x for line in lines for x in (line, " ", "")]],
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes, "": bytes, ".csv": bytes, ".gz": gzip.compress, ".csv.bz2": bz2.compress,
    ".xz": lzma.compress, ".dat": gzip.compress,
}  # fmt: skip


@examples(400)
@given(
    edges=some_edges,
    separator=st.sampled_from(sorted(SEPARATORS)),
    ids=st.sampled_from(sorted(IDS)),
    extra=st.sampled_from(sorted(EXTRA)),
    header=st.sampled_from([None, ("source", "target"), ("From Node", "To Node"), ("a", "b")]),
    end=st.sampled_from(sorted(ENDS)),
    last=st.booleans(),
    encoding=st.sampled_from(ENCODINGS),
    around=st.sampled_from(sorted(AROUND)),
    packer=st.sampled_from(sorted(PACKERS)),
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_an_edge_list_of_any_form_is_read(
    tmp_path: Path, edges: Pairs, separator: str, ids: str, extra: str, header: Any, end: str,
    last: bool, encoding: str, around: str, packer: str, block: int,
) -> None:  # fmt: skip
    between, write_id = SEPARATORS[separator], IDS[ids]
    if extra == "empty" and not between.strip() and between != "\t":
        extra = "none"  # blanks cannot say that a field is empty
    lines = [
        between.join([write_id(a), write_id(b), *EXTRA[extra](i)]) for i, (a, b) in enumerate(edges)
    ]
    if header is not None and edges and separator not in ("blank", "blanks"):
        lines = [between.join([*header, *(f"x{i}" for i in range(len(EXTRA[extra](0))))]), *lines]
    text = ENDS[end].join(AROUND[around](lines)) + ENDS[end] * last
    path = write(tmp_path / f"g{packer}", PACKERS[packer](text.encode(encoding)))
    with limits(read_characters=block):
        assert read(path) == edges
    path.unlink()


@examples()
@given(edges=edges_there, flip=st.booleans(), seed=st.integers(0, 3))
def test_columns_are_found_by_their_names(
    tmp_path: Path, edges: Pairs, flip: bool, seed: int
) -> None:
    names = [("src", "dst"), ("id_1", "id_2"), ("sender", "receiver"), ("Source ID", "Target ID")]
    columns = [("weight", [9] * len(edges))]
    ends = list(zip(names[seed], zip(*edges, strict=True), strict=True))
    columns += ends[::-1] if flip else ends
    rows = [[name for name, _ in columns], *zip(*[c for _, c in columns], strict=True)]
    path = write(tmp_path / "g.csv", "\n".join(";".join(map(str, row)) for row in rows))
    assert read(path) == edges


@pytest.mark.parametrize(
    ("text", "edges", "words"),
    [
        ("# id target source\n0 1 0\n1 2 1\n", [(0, 1), (1, 2)], "header 'id target source'"),
        (",0,1\n0,5,6\n1,6,7\n", [(5, 6), (6, 7)], "header ',0,1'"),
        ('"","V1","V2"\n"1",5,6\n"2",6,7\n', [(5, 6), (6, 7)], "source 'V1', target 'V2'"),
        ("0 1 {'weight': 3}\n1 2 {}\n", [(0, 1), (1, 2)], "what follows two ids ignored"),
        ("0 1 # a\n1 2\n", [(0, 1), (1, 2)], "blank-separated"),
        ("0\t1\tNew York\n1\t2\tRome\n", [(0, 1), (1, 2)], "tab-separated, other columns ignored"),
        ('0,1,"a, b"\n1,2,c\n', [(0, 1), (1, 2)], "','-separated"),
        ("0;1;0,5\n1;2;1,5\n", [(0, 1), (1, 2)], "';'-separated"),
        ("0\t\t1\n1\t\t2\n", [(0, 1), (1, 2)], "blank-separated"),
        ("1,2,2010-01-01 10:00:00\n", [(1, 2)], "','-separated"),
        ("# Undirected graph\n0 1\n", [(0, 1)], "--undirected takes both"),
        ("% sym unweighted\n1 2\n", [(1, 2)], "--undirected takes both"),
        ("Source,Target,Type\n0,1,Undirected\n", [(0, 1)], "--undirected takes both"),
        ("3 4\n0 1\n1 2\n2 0\n0 2\n", [(3, 4), (0, 1), (1, 2), (2, 0), (0, 2)],
         "its first line, 3 4, is read as an edge"),
        ("source,target\n", [], "0 edges"),
        ("", [], "without edges"),
    ],
)  # fmt: skip
def test_what_was_read_is_said(tmp_path: Path, text: str, edges: Pairs, words: str) -> None:
    path = write(tmp_path / "g.txt", text)
    assert read(path) == edges
    assert words in datasets.load(path).source
    assert "takes both" not in datasets.load(path, undirected=True).source


names = st.text(st.characters(categories=["L", "Nd"], include_characters="-_. "), max_size=6).map(
    lambda text: f"x{text.strip()}"
)


@examples(100)
@given(
    edges=st.lists(st.tuples(names, names), min_size=1, max_size=10),
    separator=st.sampled_from(["\t", ";", "|", ","]),
)
def test_names_are_numbered_in_their_order(
    tmp_path: Path, edges: list[tuple[str, str]], separator: str
) -> None:
    path = write(tmp_path / "g.txt", "\n".join(separator.join(edge) for edge in edges))
    order = {name: i for i, name in enumerate(sorted({n for edge in edges for n in edge}))}
    assert read(path, relabel=True) == [(order[a], order[b]) for a, b in edges]
    with pytest.raises(DatasetError, match=r"line 1: .*--relabel numbers names"):
        read(path)


@examples()
@given(
    st.lists(
        st.tuples(*[st.integers(-(2**70), 2**70) | st.integers(-9, 9)] * 2), min_size=1, max_size=9
    ),
    st.sampled_from(["{}", '"{}"', "{}.0"]),
)
def test_any_whole_numbers_are_relabelled_in_order(tmp_path: Path, edges: Pairs, form: str) -> None:
    text = "\n".join(f"{form.format(a)},{form.format(b)}" for a, b in edges)
    order = {n: i for i, n in enumerate(sorted({n for edge in edges for n in edge}))}
    path = write(tmp_path / "g.txt", text)
    assert read(path, relabel=True) == [(order[a], order[b]) for a, b in edges]


@pytest.mark.parametrize("relabel", [False, True])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,nan\n1,2\n", "line 1: '0,nan'; expected two node ids"),
        ("0,1\n1,\n", "line 2: '1,'; expected two node ids"),
        ("0 1\n0 1.5\n", "line 2: '0 1.5'; expected two node ids"),
        ("0\n1\n", "line 1: '0'; expected two node ids"),
        ("5\n0 1\n1 2\n", "line 1: '5'; expected two node ids"),
        ("0 1 2\n1 5\n2 6\n", "line 1: '0 1 2' has 3 columns; expected 2"),
        ("0 1 2\n1 5 6\n\n2 6\n", "line 4: '2 6' has 2 columns; expected 3"),
        ('0,1,"pipe\n1,2,3\n', "every quote \" to end in its line"),
        ("9" * 70000, "no end of a line"),
        (b"0 1\n\x00\x01\x02", "not a text file (character 0 at 4)"),
        ("0 1\n".encode("utf-16-le"), "not a text file"),
        (b"\x89HDF\r\n\x1a\n", "is a HDF5 file; expected an edge list"),
        ('{"nodes": []}', "is JSON, which is not read"),
        ('<?xml version="1.0"?>\n<graphml>', "is XML"),
        ('*Vertices 3\n1 "a"\n*Edges\n1 2\n', "is Pajek's format"),
        ("c hi\np sp 3 2\na 1 2 1\n", "is DIMACS"),
        ("graph [\n node [ id 0 ]\n]", "is GML"),
        ("% bip unweighted\n1 1\n", "is bipartite"),
        (gzip.compress(b"0 1\n" * 9999, mtime=0)[:-30], "is damaged or cut off (gzip"),
        (bz2.compress(b"0 1\n" * 9999)[:-30], "is damaged or cut off (bzip2"),
        (lzma.compress(b"0 1\n" * 9999)[:-30], "is damaged or cut off (xz"),
    ],
)  # fmt: skip
def test_wrong_text_is_refused(
    tmp_path: Path, text: str | bytes, words: str, relabel: bool, capsys: Any
) -> None:
    path = write(tmp_path / "g.txt", text)
    option = ["--relabel"] if relabel else []
    assert main(["stats", str(path), "--quiet", *option]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert str(path) in said.err
    assert said.out == ""


@examples(40)
@given(content=st.binary(min_size=1, max_size=200))
def test_rubbish_ends_in_a_graph_or_in_words(tmp_path: Path, content: bytes) -> None:
    for name in ("g.txt", "g.npz", "g.mtx", "g.parquet", "g.npy", "g.gz"):
        for start in (b"", b"%%MatrixMarket matrix coordinate real general\n", b"PAR1", b"PK\3\4"):
            path, words = write(tmp_path / name, start + content), name
            try:
                datasets.load(path)
            except DatasetError as e:
                words = str(e)
            assert name in words


# MatrixMarket -----------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {"pattern": None, "integer": int, "real": float, "complex": complex}


@examples(250)
@given(
    entries=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), unique=True, max_size=14),
    field=st.sampled_from(sorted(FIELDS)),
    symmetry=st.sampled_from(["general", "symmetric", "skew-symmetric", "hermitian"]),
    form=st.sampled_from(["coordinate", "array"]),
    name=st.sampled_from(["g.mtx", "g.txt", "g", "g.csv", "g.mtx.gz"]),
    bom=st.booleans(),
    banner=st.sampled_from(["%%MatrixMarket", "%%matrixmarket", "%%MATRIXMARKET"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_matrix_market_is_read_as_scipy_reads_it(
    tmp_path: Path, entries: Pairs, field: str, symmetry: str, form: str, name: str, bom: bool,
    banner: str, end: str,
) -> None:  # fmt: skip
    scipy_io = pytest.importorskip("scipy.io")
    if symmetry == "hermitian":
        field = "complex"
    if form == "array" or (symmetry == "skew-symmetric" and field == "pattern"):
        field = field if field != "pattern" else "integer"
    lower = symmetry != "general"
    strict = symmetry == "skew-symmetric"
    entries = [(i, j) for i, j in entries if not lower or i > j or (i == j and not strict)]
    value = {"pattern": "", "integer": "3", "real": "2.5", "complex": "1 0"}[field]
    lines = [f"%%MatrixMarket matrix {form} {field} {symmetry}", "% a comment, 1 2"]
    if form == "coordinate":
        lines += ["", f"8 8 {len(entries)}"] + [f"{i + 1} {j + 1} {value}" for i, j in entries]
    else:
        zero = "0 0" if field == "complex" else "0"
        lines += ["8 8"] + [
            value if (i, j) in entries else zero
            for j in range(8)
            for i in range(j + strict if lower else 0, 8)
        ]
    text = end.join(lines) + end
    expected = scipy_io.mmread(io.BytesIO(text.replace("\r\n", "\n").encode()))
    text = text.replace("%%MatrixMarket", banner)
    data = text.encode("utf-8-sig" if bom else "utf-8")
    path = write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    graph = datasets.load(path)
    dense = expected if isinstance(expected, np.ndarray) else expected.toarray()
    assert graph.num_nodes == 8
    assert sorted(read(path)) == sorted(zip(*(a.tolist() for a in np.nonzero(dense)), strict=True))
    by_hand = set(entries) | ({(j, i) for i, j in entries} if lower else set())
    assert set(read(path)) == by_hand
    assert symmetry in graph.source
    path.unlink()


BANNER = "%%MatrixMarket matrix coordinate pattern general\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("g.mtx", "3 3 2\n2 1\n3 2\n", "line 1: '3 3 2'; expected %%MatrixMarket"),
        ("g.txt", BANNER + "3 4 1\n2 1\n", "is a 3 x 4 matrix; expected a square one"),
        ("g.txt", BANNER + "3 3 1\n2 5\n", "Line 3: Column index out of bounds"),
        ("g.txt", BANNER + "3 3 1\n0 1\n", "Line 3: Row index out of bounds"),
        ("g.txt", BANNER + "3 3 2\n2 1\n", "not valid MatrixMarket"),
        ("g.txt", BANNER + "3 3 1\n2 x\n", "not valid MatrixMarket"),
        ("g.txt", BANNER + "3 3 2000000000\n2 1\n", "expected the 2,000,000,000 entries"),
        ("g.txt", BANNER + "2000000000 2000000000 1\n1 1\n", "2,000,000,000 nodes"),
        ("g.txt", BANNER + f"{10**20} {10**20} 1\n1 1\n", "not valid MatrixMarket"),
        ("g.txt", "%%MatrixMarket matrix array real general\n100000 100000\n1\n", "10,000,000,000"),
        ("g.txt", BANNER + "3 3 1\n1 2\n2 3\n", "file too long"),
        ("g.txt", "%%MatrixMarket\n", "not valid MatrixMarket"),
        ("g.txt", "%%MatrixMarket vector coordinate real general\n3 1\n1 1\n", "g.txt"),
    ],
)
def test_wrong_matrix_market_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    pytest.importorskip("scipy", minversion="1.12")
    with pytest.raises(DatasetError) as error:
        read(write(tmp_path / name, text))
    assert words in str(error.value)
    assert str(tmp_path / name) in str(error.value)


# Arrays and tables ------------------------------------------------------------------------------


@examples()
@given(edges=edges_there, dtype=st.sampled_from(["int16", "int32", "int64", "uint8", "uint64"]))
def test_arrays_under_the_names_people_give(tmp_path: Path, edges: Pairs, dtype: str) -> None:
    pairs = np.array(edges, dtype).T
    named: dict[str, dict[str, np.ndarray]] = {
        "edge_index": {"edge_index": pairs},
        "turned": {"edge_index": pairs.T} if len(edges) != 2 else {"edge_index": pairs},
        "row": {"row": pairs[0], "col": pairs[1]},
        "src": {"src": pairs[0], "dst": pairs[1], "weight": np.ones(len(edges))},
        "edges": {"edges": pairs.T} if len(edges) != 2 else {"edges": pairs},
    }
    for arrays in named.values():
        np.savez(tmp_path / "g.npz", **arrays)
        assert read(tmp_path / "g.npz") == edges
    for array in (pairs, pairs.astype(float), pairs.T if len(edges) != 2 else pairs):
        np.save(tmp_path / "g.npy", array)
        assert read(tmp_path / "g.npy") == edges


@examples()
@given(
    entries=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True, max_size=10),
    form=st.sampled_from(["csr", "csc", "coo", "bsr", "dia"]),
)
def test_scipy_matrices_are_read(tmp_path: Path, entries: Pairs, form: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    row, column = np.array(entries, int).reshape(-1, 2).T
    matrix = sparse.coo_matrix((np.ones(len(entries)), (row, column)), (6, 6))
    sparse.save_npz(tmp_path / "g.npz", matrix.asformat(form))
    nonzero = {(a, b) for a, b in read(tmp_path / "g.npz")}
    assert nonzero == set(entries) if form not in ("bsr", "dia") else nonzero >= set(entries)
    csr = matrix.tocsr()
    np.savez(
        tmp_path / "h.npz", adj_data=csr.data, adj_indices=csr.indices, adj_indptr=csr.indptr,
        adj_shape=csr.shape, labels=np.arange(6), attr_data=[1.0], attr_indices=[2],
        attr_indptr=[0, 1, 1, 1, 1, 1, 1], attr_shape=[6, 3],
    )  # fmt: skip
    graph = datasets.load(tmp_path / "h.npz")
    assert set(read(tmp_path / "h.npz")) == set(entries)
    assert graph.y is not None
    assert graph.x is not None
    assert graph.y.tolist() == list(range(6))
    assert graph.x[0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"num_nodes": "x"}, "num_nodes is <U1 .*; expected one whole number"),
        ({"num_nodes": -4}, "num_nodes is -4"),
        ({"num_nodes": 2 * 10**9}, "2,000,000,000 nodes"),
        ({"y": ["a", "b"]}, "y is <U1; expected numbers"),
        ({"x": [["a"], ["b"]]}, "x is <U1; expected real numbers"),
        ({"y": [1, 2, 3]}, "y has shape"),
        ({"edge_index": [[0], [10**9]]}, "--relabel"),
        ({"edge_index": np.array([[0], [2**63]], np.uint64)}, "ids below 2"),
    ],
)
def test_wrong_arrays_are_refused_by_the_name_of_the_file(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    path = tmp_path / "g.npz"
    np.savez(path, **{"edge_index": [[0], [1]], **arrays})
    with pytest.raises(DatasetError, match=words) as error:
        datasets.load(path)
    assert str(path) in str(error.value)


KINDS: dict[str, Callable[[Any, list[int]], Any]] = {
    "int32": lambda pa, ids: pa.array(ids, pa.int32()),
    "uint64": lambda pa, ids: pa.array(ids, pa.uint64()),
    "double": lambda pa, ids: pa.array([float(i) for i in ids]),
    "text": lambda pa, ids: pa.array([str(i) for i in ids], pa.string()),
    "dictionary": lambda pa, ids: pa.array([str(i) for i in ids], pa.string()).dictionary_encode(),
}


@examples()
@given(edges=some_edges, kind=st.sampled_from(sorted(KINDS)), feather=st.booleans())
def test_parquet_and_feather_are_read(
    tmp_path: Path, edges: Pairs, kind: str, feather: bool
) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.feather
    import pyarrow.parquet

    target, source = (KINDS[kind](pa, [edge[i] for edge in edges]) for i in (1, 0))
    table = pa.table({"t": pa.nulls(len(edges)), "dst": target, "src": source})
    path = tmp_path / "g"
    if feather:
        pyarrow.feather.write_feather(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    assert read(path) == edges


def test_wrong_tables_are_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = tmp_path / "g.parquet"
    for columns, words in (
        ({"src": [1]}, "expected source and target"),
        (
            {"src": [1, None], "dst": [1, 2]},
            r"row 2: \[None, 2\]; expected no null in column 'src'",
        ),
        ({"src": [1, 2], "dst": [1, -2]}, r"row 2: \[2, -2\]; expected ids from 0"),
        ({"src": [1.0, 2.5], "dst": [1.0, 2.0]}, r"row 2: .*expected two node ids"),
        ({"src": [10**9], "dst": [1]}, "--relabel"),
        ({"src": [[1]], "dst": [[1]]}, "expected node ids"),
    ):
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(DatasetError, match=words):
            read(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"g\.parquet is damaged or cut off"):
        read(path)
    zstd = write(tmp_path / "g.zst", pa.compress(b"0 1\n1 2\n", codec="zstd", asbytes=True))
    assert read(zstd) == [(0, 1), (1, 2)]


@pytest.mark.parametrize(
    ("name", "package", "content"),
    [
        ("g.mtx", "scipy", (BANNER + "1 1 0\n").encode()),
        ("g.parquet", "pyarrow", b"PAR1"),
        ("g.zst", "pyarrow", b"\x28\xb5\x2f\xfd"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, name: str, package: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "hag-plugin\[files\]"'):
        read(write(tmp_path / name, content))


# Large ids, where the memory is limited ---------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_gaps_are_refused_or_relabelled_within_memory(tmp_path: Path) -> None:
    pairs = ["1000000000 2", "2147483646 0", "0 1000001"]
    program = (
        "import resource, sys\n"
        "from hag_plugin.cli import main\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))\n"
        "for path in sys.argv[1:]:\n"
        "    plain = ['stats', path, '--quiet', '--threads', '1']\n"
        "    print(main(plain), main([*plain, '--relabel']), file=sys.stderr)\n"
    )
    paths = [write(tmp_path / f"{i}.txt", text + "\n") for i, text in enumerate(pairs)]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr.count("2 0\n") == len(pairs), done.stderr
    assert done.stderr.count("expected ids without such gaps, or --relabel") == len(pairs)


# Where a file may be ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["stats"],
        ["build"],
        ["plan", "gcn", "--devices", "2"],
        ["simulate", "gcn", "--devices", "2"],
    ],
)
def test_standard_input_and_options(
    tmp_path: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    name, *rest = command
    out = [str(tmp_path / "g.npz")] if name == "build" else []
    content = gzip.compress("ä;b\nb;c\n".encode("utf-8-sig"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    options = ["--relabel", "--undirected", "--quiet", "--json"]
    assert main([name, *rest[:1], "-", *out, *rest[1:], *options]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["command"] == name
    assert "standard input read as: gzip, an edge list, ';'-separated, 2 edges" in said.err
    assert "both directions" in said.err


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DatasetError, match=r"folder\.txt is a folder; expected a file"):
        datasets.load(tmp_path / "folder.txt")
    with pytest.raises(DatasetError, match=r"none: no such file"):
        datasets.load(tmp_path / "none")
    np.savez(tmp_path / "g.npz", edge_index=[[0], [1]], y=[0, 1])
    with pytest.raises(DatasetError, match="holds y; --relabel and --undirected are for files"):
        datasets.load(tmp_path / "g.npz", relabel=True)
    path = tmp_path / "g.pt"
    import torch

    torch.save(torch.zeros(2, 3), path)
    with pytest.raises(DatasetError, match=r"unknown kind of file '.pt'; expected an edge list"):
        datasets.load(path)
    with pytest.raises(DatasetError, match=r"is a zip archive with .*expected an \.npz"):
        datasets.load(path.rename(tmp_path / "g.bin"))
