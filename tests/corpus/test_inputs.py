import os
import pickle
import sys
import zipfile

import fsspec
import pytest

from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.errors import InputError

FILES = (
    *("b/x.jsonl", "a/x.jsonl", "a/deep/y.CSV.gz", "a/notes.md"),
    *("a/.hidden.txt", "a/.hidden/z.txt", "a/_skipped.txt", "a/_skipped/z.txt"),
)
EVERYTHING = ["a/deep/y.CSV.gz", "a/x.jsonl", "b/x.jsonl"]  # that is wanted of it


@pytest.fixture
def tree(tmp_path):
    for name in FILES:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path / "in"


def names(*arguments, out, **options):
    return [file.name for file in find_inputs([str(a) for a in arguments], out=out, **options)]


def test_a_directory_is_searched_in_sorted_order_for_what_can_be_read(tree, tmp_path):
    assert names(tree, out=tmp_path / "out") == EVERYTHING
    assert names(tree, out=tmp_path / "out", file_format="csv") == ["y.CSV.gz"]


def test_files_keep_the_order_of_the_arguments_and_count_once(tree, tmp_path):
    arguments = (tree / "b/x.jsonl", tree / "*/x.jsonl", tree / "b" / ".." / "b/x.jsonl")
    assert names(*arguments, out=tmp_path / "out") == ["b/x.jsonl", "a/x.jsonl"]


def test_one_file_is_named_without_its_folder(tree, tmp_path):
    assert names(tree / "a/x.jsonl", out=tmp_path) == ["x.jsonl"]


def test_formats_come_from_the_extension_or_from_the_option(tree, tmp_path):
    (file,) = find_inputs([str(tree / "a/deep/y.CSV.gz")], out=tmp_path)
    assert (file.format, file.compressed) == ("csv", True)
    (file,) = find_inputs([str(tree / "a/notes.md")], "txt", out=tmp_path)
    assert (file.format, file.compressed) == ("txt", False)


@pytest.mark.parametrize("name", ["U.TXT.GZ", "u.txt.Zst"])
def test_extensions_count_in_any_case(tmp_path, name):
    (tmp_path / name).write_text("")
    (file,) = find_inputs([str(tmp_path)], out=tmp_path / "out")
    assert (file.name, file.format, file.compressed) == (name, "txt", True)


@pytest.mark.parametrize("argument", [".", "*/*", "**"])
@pytest.mark.parametrize("linked", ["nothing", "the input", "the output", "a part"])
def test_the_output_is_not_its_own_input_by_any_path(tree, tmp_path, linked, argument):
    start, out = tree, tmp_path / "out" if linked in ("the output", "a part") else tree / "out"
    out.mkdir()
    (out / "part.csv").write_text("")
    (tree / "b/y.csv").write_text("")
    if linked == "the input":
        (start := tmp_path / "link").symlink_to(tree)
    elif linked != "nothing":
        (tree / "b/link.csv").symlink_to(out if linked == "the output" else out / "part.csv")
    found = {each: find_inputs([str(start / argument)], "csv", out=each) for each in (out, tmp_path / "x")}
    after, before = ({file.path for file in files} for files in found.values())
    ours = {each for each in before if "/out/" in os.path.realpath(each)}
    assert after == before - ours
    assert str(start / "b/y.csv") in after  # not its real path
    assert ours or (linked, argument) == ("the output", "*/*")  # where the glob goes less deep


def test_the_output_may_be_named_through_a_link(tree, tmp_path):
    (tmp_path / "link").symlink_to(tree)
    (tree / "out").mkdir()
    (tree / "out/part.csv").write_text("")
    assert names(tree, out=tmp_path / "link/out") == EVERYTHING


def refuse(monkeypatch, call, refused):
    """To root nothing is unreadable."""
    allowed = getattr(os, call)

    def maybe(path, *arguments, **options):
        if str(path) == str(refused):
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(os, call, maybe)


@pytest.mark.parametrize("argument", [".", "a", "a/deep"])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tree, tmp_path, monkeypatch, argument):
    refuse(monkeypatch, "scandir", tree / "a/.hidden")
    assert names(tree / "a", out=tmp_path / "out") == ["deep/y.CSV.gz", "x.jsonl"]
    refuse(monkeypatch, "scandir", tree / "a/deep")
    with pytest.raises(InputError, match=r"^cannot list .*/in/a/deep: Permission denied$"):
        names(tree / argument, out=tmp_path / "out")
    assert names(tree / "b", tree / "a/*.jsonl", out=tmp_path / "out") == ["b/x.jsonl", "a/x.jsonl"]


@pytest.mark.parametrize("argument", ["a/x.jsonl", "a", "a/x.*", "*/x.jsonl"])
def test_a_file_that_cannot_be_looked_at_is_named(tree, tmp_path, monkeypatch, argument):
    refuse(monkeypatch, "stat", tree / "a/x.jsonl")
    with pytest.raises(InputError, match=r"^cannot read .*/in/a/x.jsonl: Permission denied$"):
        names(tree / argument, out=tmp_path / "out")


def test_links_to_folders_are_followed_and_each_folder_counts_once(tree, tmp_path):
    (tmp_path / "shards/one").mkdir(parents=True)
    (tmp_path / "shards/one/s.jsonl").write_text("")
    (tmp_path / "shards/one/back").symlink_to(tree)  # a circle
    (tree / "linked").symlink_to(tmp_path / "shards")
    (tree / "0-latest").symlink_to(tree / "b")  # what it holds has a path without links
    assert names(tree, out=tmp_path / "out") == [*EVERYTHING, "linked/one/s.jsonl"]
    (tree / "linked").rename(tree / "_linked")
    assert names(tree, out=tmp_path / "out") == EVERYTHING


@pytest.mark.parametrize("argument", ["", "*/z*", "a/z.txt.gz", "**"])
def test_a_link_to_nothing_is_refused_where_a_file_is_wanted(tree, tmp_path, argument):
    for link in ("a/z.txt.gz", "a/.z.txt", "a/_z.txt", "b/z"):
        (tree / link).symlink_to("not-fetched")
    with pytest.raises(InputError, match=r"^cannot read .*z.*: .* points to nothing; fetch it"):
        names(tree / argument, out=tmp_path / "out")
    assert names(tree, out=tmp_path / "out", file_format="csv") == ["y.CSV.gz"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("missing.jsonl", "no such input: .*missing.jsonl"),
        (256 * "x", "^cannot read .*xxx: File name too long$"),
        ("*.parquet", "no file matches"),
        ("a/notes.md", "cannot tell the format of .*notes.md: say --format"),
        ("empty", r"holds no .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .txt file"),
    ],
)
def test_arguments_without_files_are_refused(tree, tmp_path, argument, message):
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        names(tree / argument, out=tmp_path / "out")


@pytest.fixture
def bucket():
    """A filesystem that is not local, with some files; its URLs begin with memory://bucket/."""
    fs = fsspec.filesystem("memory")
    for name in FILES:
        fs.pipe_file(f"/bucket/{name}", b"123")
    yield fs
    fs.rm("/bucket", recursive=True)


def write_zip(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "12345")
    return path


def test_directories_globs_and_files_of_a_url(bucket, tmp_path):
    assert names("memory://bucket", out=tmp_path) == names("memory://bucket/", out=tmp_path) == EVERYTHING
    assert names("memory://bucket", out=tmp_path, file_format="csv") == ["y.CSV.gz"]
    assert names("memory://bucket/*/x.jsonl", out=tmp_path) == ["a/x.jsonl", "b/x.jsonl"]
    assert names("memory://bucket/**/[xy].*", out=tmp_path) == EVERYTHING
    ordered = names("memory://bucket/b/x.jsonl", "memory://bucket", out=tmp_path)
    assert ordered == ["b/x.jsonl", "a/deep/y.CSV.gz", "a/x.jsonl"]


def test_what_is_known_of_a_url(bucket, tmp_path):
    (file,) = find_inputs(["memory://bucket/a/deep"], out=tmp_path)
    assert (file.path, file.name) == ("memory://bucket/a/deep/y.CSV.gz", "y.CSV.gz")
    assert (file.format, file.size, file.compressed, file.remote) == ("csv", 3, True, True)
    assert file.mtime_ns > 10**18
    assert pickle.loads(pickle.dumps(file)) == file
    with file.open() as stored:
        assert stored.read() == b"123"


def test_a_file_url_is_a_local_path(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tree)
    by_path = find_inputs([str(tree)], out=tmp_path / "out")
    assert find_inputs([tree.as_uri()], out=tmp_path / "out") == by_path
    assert find_inputs([str(tree), f"file://{tree}/*/x.jsonl"], out=tmp_path / "out") == by_path
    (file,) = find_inputs(["file://b/x.jsonl"], out=tmp_path / "out")
    assert file.path == by_path[2].path


def test_the_members_of_an_archive(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "rows.zip", "d/a.jsonl", "d/b.jsonl", "d/c.md", "e.txt")
    at_file = f"::file://{path}"
    monkeypatch.chdir(tmp_path)
    (file,) = find_inputs(["zip://d/a.jsonl::rows.zip"], out=tmp_path)
    assert (file.path, file.name, file.size) == (f"zip://d/a.jsonl{at_file}", "a.jsonl", 5)
    assert file.version  # its checksum
    with file.open() as stored:
        assert stored.read() == b"12345"
    for everything in ("zip://::rows.zip", f"zip{at_file}"):
        found = find_inputs([everything], out=tmp_path)
        assert [each.path for each in found] == [
            f"zip://{name}{at_file}" for name in ("d/a.jsonl", "d/b.jsonl", "e.txt")
        ]
    assert names("zip://d/*.jsonl::rows.zip", out=tmp_path) == ["a.jsonl", "b.jsonl"]
    cached = find_inputs(["simplecache::zip://d/*.jsonl::rows.zip"], out=tmp_path)
    assert [each.path for each in cached] == [f"simplecache::zip://d/{name}.jsonl{at_file}" for name in "ab"]
    with cached[0].open() as stored:
        assert stored.read() == b"12345"


def test_names_say_as_much_of_the_place_as_differs(bucket, tree, tmp_path):
    archive = f"zip://a/x.jsonl::{write_zip(tree / 'rows.zip', 'a/x.jsonl')}"
    assert names(tree / "a/x.jsonl", archive, out=tmp_path) == ["a/x.jsonl", "rows.zip/a/x.jsonl"]
    both = names("memory://bucket/a/x.jsonl", tree / "a/x.jsonl", out=tmp_path)
    assert both == ["memory/bucket/a/x.jsonl", f"file{tree}/a/x.jsonl"]
    # One place by two URLs: still two names.
    both = names("memory://bucket/a/x.jsonl", "simplecache::memory://bucket/a/x.jsonl", out=tmp_path)
    assert both == ["x.jsonl", "x.jsonl#2"]


def test_a_change_is_seen_and_named(bucket, tree, tmp_path):
    path = tree / "a/x.jsonl"
    local, remote = find_inputs([str(path), "memory://bucket/a/x.jsonl"], out=tmp_path)
    assert local.changed() is remote.changed() is None
    os.utime(path, ns=(local.mtime_ns, local.mtime_ns + 1))
    assert str(path) in local.changed()
    assert "its time of change (ns) was" in local.changed()
    bucket.pipe_file("/bucket/a/x.jsonl", b"1234")
    assert remote.changed() == f"input {remote.path} changed while it was read: its size was 3 and is 4"
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        local.changed()
    bucket.rm("/bucket/a/x.jsonl")
    with pytest.raises(InputError, match="no such input: memory://"):
        remote.changed()


def test_a_changed_member_of_an_archive_is_seen_by_its_checksum(tmp_path):
    path = write_zip(tmp_path / "rows.zip", "a.txt")
    (file,) = find_inputs([f"zip://a.txt::{path}"], out=tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "54321")
    assert "its version was" in file.changed()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("memory://bucket/missing.jsonl", "no such input: memory://bucket/missing.jsonl"),
        ("memory://bucket/*.parquet", "no file matches memory://bucket/"),
        ("memory://nowhere/*.parquet", "no file matches memory://nowhere/"),
        ("memory://bucket/a/notes.md", "cannot tell the format of memory://.*notes.md: say --format"),
        ("file:///missing.jsonl", "no such input: /missing.jsonl"),
        ("zip://a.jsonl::missing.zip", "no such input: zip://a.jsonl::"),
        ("nosuch://x.jsonl", "cannot read nosuch://x.jsonl: Protocol not known: nosuch"),
        ("http://127.0.0.1:9/x.jsonl", "cannot read http://127.0.0.1:9/x.jsonl: Cannot connect to host"),
        ("http://127.0.0.1:9/*.jsonl", "cannot read http://127.0.0.1:9/.*: Cannot connect to host"),
    ],
)
def test_urls_without_files_are_refused_in_one_line(bucket, tmp_path, argument, message):
    with pytest.raises(InputError, match=message) as raised:
        names(argument, out=tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"cannot read s3://b/x.jsonl: Install s3fs to access S3"):
        names("s3://b/x.jsonl", out=tmp_path)


def test_what_a_filesystem_refuses_is_said(bucket, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("Access\n  Denied")

    monkeypatch.setattr(type(bucket), "ls", refuse)
    for argument in ("memory://bucket/a/", "memory://bucket/none*"):
        with pytest.raises(InputError, match=r"cannot read memory://.*: Access Denied$"):
            names(argument, out=tmp_path)


def test_an_output_may_be_named_by_a_file_url(tmp_path):
    for name in ("x.jsonl", "out/part-0.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [file.name for file in find_inputs([str(tmp_path)], out=f"file://{tmp_path}/out")] == ["x.jsonl"]
