import pytest

from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.errors import InputError


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b/x.jsonl",
        "a/x.jsonl",
        "a/deep/y.CSV.gz",
        "a/.hidden.txt",
        "a/_skipped.txt",
        "a/notes.md",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path / "in"


def names(*arguments, out, **options):
    return [file.name for file in find_inputs([str(a) for a in arguments], out=out, **options)]


def test_a_directory_is_searched_in_sorted_order_for_what_can_be_read(tree, tmp_path):
    assert names(tree, out=tmp_path / "out") == ["a/deep/y.CSV.gz", "a/x.jsonl", "b/x.jsonl"]
    assert names(tree, out=tmp_path / "out", file_format="csv") == ["y.CSV.gz"]


def test_files_keep_the_order_of_the_arguments_and_count_once(tree, tmp_path):
    found = names(
        tree / "b/x.jsonl", tree / "*/x.jsonl", tree / "b" / ".." / "b/x.jsonl", out=tmp_path / "out"
    )
    assert found == ["b/x.jsonl", "a/x.jsonl"]


def test_one_file_is_named_without_its_folder(tree, tmp_path):
    assert names(tree / "a/x.jsonl", out=tmp_path) == ["x.jsonl"]


def test_formats_come_from_the_extension_or_from_the_option(tree, tmp_path):
    (file,) = find_inputs([str(tree / "a/deep/y.CSV.gz")], out=tmp_path)
    assert (file.format, file.compressed) == ("csv", True)
    (file,) = find_inputs([str(tree / "a/notes.md")], "txt", out=tmp_path)
    assert (file.format, file.compressed) == ("txt", False)


def test_the_output_is_not_its_own_input(tree):
    (tree / "out").mkdir()
    (tree / "out" / "part-00000.parquet").write_text("")
    assert "part-00000.parquet" not in str(names(tree, out=tree / "out"))
    assert "part-00000.parquet" in str(names(tree, out=tree / "elsewhere"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("missing.jsonl", "no such input: .*missing.jsonl"),
        ("*.parquet", "no file matches"),
        ("a/notes.md", "cannot tell the format of .*notes.md: say --format"),
        ("empty", r"holds no .jsonl, .csv, .parquet or .txt file"),
    ],
)
def test_arguments_without_files_are_refused(tree, tmp_path, argument, message):
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        names(tree / argument, out=tmp_path / "out")
