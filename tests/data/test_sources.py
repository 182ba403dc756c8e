"""Every kind of source gives its bytes, and every unusable one a sentence."""

import bz2
import gzip
import hashlib
import http.server
import lzma
import os
import subprocess
import sys
import sysconfig
import threading
import zipfile

import pytest
import zstandard

from sparse_tx.data import enwik8
from sparse_tx.data.enwik8 import fetch_enwik8
from sparse_tx.data.sources import open_source
from sparse_tx.errors import UserError

# Not compressible, so that cutting a compressed file cuts its text; longer than one chunk.
TEXT = hashlib.shake_256(b"text").digest((1 << 20) + 7919)

COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


def read(path, tmp_path) -> bytes:
    return b"".join(open_source(str(path), tmp_path / "cache").chunks())


def refusal(path, tmp_path) -> str:
    with pytest.raises(UserError) as caught:
        read(path, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_zip(path, members: dict[str, bytes]):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("form", COMPRESS)
def test_compressed_file(form, tmp_path):
    path = tmp_path / f"text.{form}"
    path.write_bytes(COMPRESS[form](TEXT))
    assert read(path, tmp_path) == TEXT


@pytest.mark.parametrize("form", COMPRESS)
def test_concatenated_compressed_files_are_one_text(form, tmp_path):
    path = tmp_path / f"text.{form.upper()}"
    path.write_bytes(COMPRESS[form](TEXT[:101]) + COMPRESS[form](TEXT[101:]))
    assert read(path, tmp_path) == TEXT


def test_zip_members_come_sorted(tmp_path):
    path = tmp_path / "text.zip"
    write_zip(path, {"b/two": TEXT[997:], "b/": b"", "a/one": TEXT[:997]})
    assert read(path, tmp_path) == TEXT


def test_chunks_are_of_bounded_size_and_repeatable(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(TEXT * 3)
    source = open_source(str(path), tmp_path)
    sizes = [len(chunk) for chunk in source.chunks()]
    assert sum(sizes) == 3 * len(TEXT) and max(sizes) <= 2 << 20
    assert b"".join(source.chunks()) == b"".join(source.chunks()) == TEXT * 3


def test_folder_is_read_in_order_without_hidden_files(tmp_path):
    folder = tmp_path / "texts"
    kept = ("b.txt", "a/z.txt", "a.txt", "empty.txt", "empty.gz")
    # Importing a module of the folder leaves bytecode there.
    for name in (*kept, ".hidden", ".git/config", "a/__pycache__/z.cpython-311.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if "empty" in name else name)
    (folder / "c.gz").write_bytes(gzip.compress(b"c.gz"))
    os.mkfifo(folder / "pipe")
    assert read(folder, tmp_path) == b"a.txt" + b"a/z.txt" + b"b.txt" + b"c.gz"


def test_fingerprint_changes_with_content_and_only_then(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    first = open_source(str(folder), tmp_path).fingerprint
    assert open_source(str(folder), tmp_path).fingerprint == first
    (folder / "b").write_bytes(b"two")
    second = open_source(str(folder), tmp_path).fingerprint
    (folder / "a").write_bytes(b"three")
    assert len({first, second, open_source(str(folder), tmp_path).fingerprint}) == 3


def test_stdlib_is_the_library_without_tests_and_packages(tmp_path):
    source = open_source("stdlib", tmp_path)
    text = b"".join(source.chunks())
    text.decode()
    library = sysconfig.get_path("stdlib")
    for name in ("abc.py", "json/decoder.py", "zipfile.py"):
        with open(os.path.join(library, name), "rb") as file:
            assert text.count(file.read()) == 1, name
    assert text.find(b"class JSONDecoder") < text.find(b"class ZipFile:")
    assert source.fingerprint == open_source("stdlib", tmp_path).fingerprint


def test_what_belongs_to_the_stdlib(tmp_path, monkeypatch):
    for name in (
        "b.py",
        "a/a.py",
        "data.txt",
        "test/c.py",
        "json/tests/d.py",
        "idlelib/idle_test/e.py",
        "site-packages/f.py",
        "dist-packages/g/h.py",
        "a/testing.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert b"".join(open_source("stdlib", tmp_path).chunks()) == b"<a/a.py><a/testing.py><b.py>"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("enwik9", ["'enwik9'", "did you mean 'enwik8'?", "hf:NAME"]),
        ("StdLib", ["'StdLib'", "did you mean 'stdlib'?"]),
        ("no/such/file.txt", ["'no/such/file.txt'", "path of a file or folder"]),
        ("", ["''", "path of a file"]),
        ("~nobody-of-this-name/x", ["'~nobody-of-this-name/x'", "path of a file"]),
        ("hf:", ["'hf:'", "hf:NAME"]),
        ("/dev/null", ["neither a file nor a folder"]),
    ],
)
def test_what_is_no_source(spec, parts, tmp_path):
    with pytest.raises(UserError) as caught:
        open_source(spec, tmp_path)
    for part in parts:
        assert part in str(caught.value)


def test_a_far_name_gets_no_hint(tmp_path):
    assert "did you mean" not in refusal("novel.txt", tmp_path)


@pytest.mark.parametrize("name", ["empty.txt", "empty.gz", "nothing_inside.xz", "empty.zip"])
def test_empty_file(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(lzma.compress(b"") if name.endswith("xz") else b"")
    if name.endswith("zip"):
        write_zip(path, {})
    assert "is empty" in refusal(path, tmp_path) and name in refusal(path, tmp_path)


def test_folder_without_usable_files(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / ".hidden").write_text("x")
    assert "holds no files but hidden ones" in refusal(folder, tmp_path)
    (folder / "empty").write_text("")
    assert "is empty" in refusal(folder, tmp_path)


@pytest.mark.parametrize("form", COMPRESS)
@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_truncated_compressed_file(form, keep, tmp_path):
    data = COMPRESS[form](TEXT)
    path = tmp_path / f"text.{form}"
    path.write_bytes(data[: int(len(data) * keep)])
    message = refusal(path, tmp_path)
    assert "stops in the middle" in message and "fetch it again" in message and path.name in message


def test_truncated_zip(tmp_path):
    path = tmp_path / "text.zip"
    write_zip(path, {"a": TEXT})
    path.write_bytes(path.read_bytes()[:-997])
    assert "zip file" in (message := refusal(path, tmp_path)) and "damaged or incomplete" in message


@pytest.mark.parametrize("form", [*COMPRESS, "zip"])
def test_damaged_compressed_file(form, tmp_path):
    path = tmp_path / f"text.{form}"
    if form == "zip":
        write_zip(path, {"a": TEXT})
    elif form == "zst":  # whose simple interface leaves out the checksum
        path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(TEXT))
    else:
        path.write_bytes(COMPRESS[form](TEXT))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    message = refusal(path, tmp_path)
    assert "damaged or incomplete" in message and path.name in message


@pytest.mark.parametrize("form", [*COMPRESS, "zip"])
def test_plain_file_under_the_name_of_a_compressed_one(form, tmp_path):
    path = tmp_path / f"text.{form}"
    path.write_bytes(b"plain text that nobody compressed")
    message = refusal(path, tmp_path)
    assert "although its name ends in" in message and f"'.{form}'" in message


def test_file_without_the_right_to_read(tmp_path, monkeypatch):
    path = tmp_path / "secret.txt"
    path.write_text("x")

    def refuse(name, *_):  # root may read whatever its mode says
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr("builtins.open", refuse)
    message = refusal(path, tmp_path)
    assert "secret.txt" in message and "Permission denied" in message


def test_dataset_of_rows(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "one"}\n{"text": "zwei\\n"}\n{"text": "três"}\n')
    assert read(f"hf:{folder}", tmp_path).decode() == "one\nzwei\ntrês\n"
    assert (
        open_source(f"hf:{folder}", tmp_path).fingerprint
        == open_source(f"hf:{folder}", tmp_path).fingerprint
    )

    other = tmp_path / "other"
    other.mkdir()
    (other / "train.jsonl").write_text('{"title": "one", "body": "x"}\n')
    assert "no column 'text', only title, body" in refusal(f"hf:{other}", tmp_path)
    (other / "train.jsonl").write_text('{"text": ["one", "two"]}\n')
    assert "column 'text' of the dataset" in refusal(f"hf:{other}", tmp_path)
    (other / "train.jsonl").write_text('{"text": 5}\n')
    assert "holds int64, not strings" in refusal(f"hf:{other}", tmp_path)


def test_dataset_out_of_reach(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*_, **__):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = refusal("hf:someone/something:plain", tmp_path)
    assert "'hf:someone/something:plain'" in message and "local file" in message


@pytest.fixture
def server(tmp_path):
    """A web server of the folder ``served``; gives its URL and the paths that were asked for."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()


def test_enwik8_is_downloaded_once(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, asked = server
    write_zip(tmp_path / "served" / "enwik8.zip", {"enwik8": TEXT})
    md5 = hashlib.md5(TEXT).hexdigest()
    cache = tmp_path / "deep" / "cache"
    path = fetch_enwik8(cache, base_url=url, md5=md5)
    assert fetch_enwik8(cache, base_url=url, md5=md5) == path
    assert len(asked) == 1
    assert b"".join(open_source("enwik8", cache, enwik8_base_url=url).chunks()) == TEXT
    assert len(asked) == 1 and os.listdir(cache) == [path.name]


@pytest.mark.parametrize("served", ["other bytes", "no zip", "nothing"])
def test_a_wrong_download_is_refused_and_not_kept(served, server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url, _ = server
    if served == "other bytes":
        write_zip(tmp_path / "served" / "enwik8.zip", {"enwik8": TEXT[1:]})
    elif served == "no zip":
        (tmp_path / "served" / "enwik8.zip").write_text("<html>please log in</html>")
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="by hand") as caught:
        open_source("enwik8", cache, enwik8_base_url=url)
    assert "\n" not in str(caught.value)
    if served == "other bytes":
        assert enwik8.MD5 in str(caught.value)
    assert os.listdir(cache) == []


def test_enwik8_without_network(tmp_path):
    with pytest.raises(UserError, match=r"could not be downloaded .* --data enwik8\.zip"):
        open_source("enwik8", tmp_path, enwik8_base_url="http://127.0.0.1:9")


def test_import_loads_no_optional_library():
    code = "import sys, sparse_tx.data; print([m for m in sys.modules if m in sys.argv])"
    optional = ["datasets", "pooch", "zstandard", "tokenizers"]
    done = subprocess.run(
        [sys.executable, "-c", code, *optional], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
