"""Prompts as JSON Lines, and files that only ever hold whole lines."""

import base64
import json
import math
import re
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest

from sparse_tx.commands.json_lines import Job, Lines, make_jobs, make_line, parse_prompts
from sparse_tx.config import SamplingConfig
from sparse_tx.data import ByteTokenizer, CharTokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import TextPiece, TextRequest, TextToken

DEFAULT = TextRequest(
    length=7, seed=40, stop=[b"."], settings=SamplingConfig(top_k=5, temperature=0.5)
)


def parse(text, *, tokenizer=None, default=DEFAULT, num_samples=1):
    data = text if isinstance(text, bytes) else text.encode()
    return parse_prompts(data, "'x.jsonl'", tokenizer or ByteTokenizer(), default, num_samples)


def test_a_prompt_alone_takes_all_else_from_the_default():
    [job] = parse('{"prompt": "añ"}')
    assert (job.id, job.sample) == (1, 0)
    request = job.request
    assert bytes(request.prompt.tolist()) == "añ".encode()
    assert (request.length, request.seed, request.logprobs) == (7, 40, None)
    assert request.stop == [b"."]
    assert request.settings == DEFAULT.settings


def test_an_object_may_change_everything():
    [job] = parse(
        '{"id": "a-1", "prompt": [0, 255], "length": 3, "seed": 9, "stop": ["ñ", "b"],'
        ' "logprobs": 2, "temperature": 1, "top_k": null, "top_p": 0.5, "min_p": 0.1,'
        ' "repetition_penalty": 1.5, "repetition_window": 64}'
    )
    request = job.request
    assert (job.id, request.prompt.tolist()) == ("a-1", [0, 255])
    assert (request.length, request.seed, request.logprobs) == (3, 9, 2)
    assert list(request.stop) == ["ñ".encode(), b"b"]
    assert request.settings == SamplingConfig(
        temperature=1.0, top_p=0.5, min_p=0.1, repetition_penalty=1.5, repetition_window=64
    )


def test_one_stop_string_needs_no_list_and_none_is_an_empty_one():
    first, second = parse('{"prompt": "", "stop": "ab"}\n{"prompt": "", "stop": []}')
    assert (list(first.request.stop), list(second.request.stop)) == ([b"ab"], [])


def test_jobs_are_numbered_by_line_and_have_seeds_of_their_own():
    text = '{"prompt": "a"}\r\n\n  \n{"prompt": "a", "seed": 3}\n{"prompt": "a", "id": 0}\n'
    jobs = parse(b"\xef\xbb\xbf" + text.encode(), num_samples=2)
    assert [(job.id, job.sample, job.request.seed) for job in jobs] == [
        (1, 0, 40),
        (1, 1, 41),
        (4, 0, 3),
        (4, 1, 4),
        (0, 0, 44),
        (0, 1, 45),
    ]


def test_prompts_are_tokens_of_the_models_tokenizer():
    letters = CharTokenizer("ab€")
    assert parse('{"prompt": "€a"}', tokenizer=letters)[0].request.prompt.tolist() == [2, 0]
    with pytest.raises(UserError, match=r"line 2 of 'x\.jsonl': the character 'c'"):
        parse('{"prompt": "a"}\n{"prompt": "abc"}', tokenizer=letters)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("prompt", "this is not JSON: Expecting value at character 1"),
        ('{"prompt": "a"', "this is not JSON: "),
        ('{"prompt": ' + "9" * 5000 + "}", "this JSON cannot be read: "),
        ("[" * 100_000, "this JSON cannot be read: "),
        ('["a"]', '["a"] is no object, such as {"prompt": "Once"}'),
        ("{}", 'the object has no "prompt"'),
        ('{"promt": "a"}', "there is no field 'promt': did you mean 'prompt'?"),
        ('{"prompt": null}', "prompt is null; it must be a string or a list"),
        ('{"prompt": [97, 256]}', "256 in the prompt is no token id: those of this model are 0"),
        ('{"prompt": [true]}', "true in the prompt is no token id"),
        ('{"prompt": [1.0]}', "1.0 in the prompt is no token id"),
        ('{"prompt": [-1]}', "-1 in the prompt is no token id"),
        ('{"prompt": "\\ud83d"}', "prompt has \\ud83d in it, which is half of a character"),
        ('{"prompt": "", "id": 1.5}', "id is 1.5; it must be a string or a whole number"),
        ('{"prompt": "", "id": true}', "id is true; it must be"),
        ('{"prompt": "", "length": "5"}', 'length is "5"; it must be a whole number'),
        ('{"prompt": "", "length": 0}', "length is 0; it must be 1 or more"),
        ('{"prompt": "", "seed": -1}', "seed is -1; it must be from 0"),
        ('{"prompt": "", "stop": [1]}', "1 in stop is no string"),
        ('{"prompt": "", "stop": ""}', "a stop string is empty"),
        ('{"prompt": "", "logprobs": 257}', "logprobs is 257; the model has 256 tokens"),
        ('{"prompt": "", "temperature": "hot"}', 'temperature is "hot"; it must be a number'),
        ('{"prompt": "", "temperature": -1}', "temperature is -1"),
        ('{"prompt": "", "temperature": NaN}', "temperature is nan"),
        ('{"prompt": "", "temperature": 1' + "0" * 400 + "}", "temperature is inf"),
        ('{"prompt": "", "top_k": 1.5}', "top_k is 1.5; it must be a whole number or null"),
        ('{"prompt": "", "top_p": 2}', "top_p is 2"),
        ('{"prompt": "", "repetition_penalty": 0}', "repetition_penalty is 0"),
        ('{"prompt": "", "repetition_window": 0}', "repetition_window is 0"),
    ],
)
def test_a_mistake_names_its_line(line, message):
    with pytest.raises(UserError) as raised:
        parse('{"prompt": "a"}\n\n' + line)
    assert str(raised.value).startswith("line 3 of 'x.jsonl': ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_lines_that_are_not_utf8_are_a_mistake():
    with pytest.raises(UserError, match=r"line 1 of 'x\.jsonl': the byte 0xff is not UTF-8"):
        parse(b'{"prompt": "\xff"}')


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_no_prompt_at_all_is_a_mistake(data):
    with pytest.raises(UserError, match=r"there is no prompt in 'x\.jsonl'"):
        parse(data)


# --- Texts --------------------------------------------------------------------------------------


def job(**fields):
    return Job(id="a", sample=2, request=TextRequest(length=9, seed=5, **fields))


def test_a_line_has_text_tokens_and_why_it_ends():
    pieces = [
        TextPiece(data=b"\xc3", tokens=(TextToken(195),), finish_reason=None),
        TextPiece(data=b"", tokens=(), finish_reason=None),
        TextPiece(data=b"\xb1b", tokens=(TextToken(177), TextToken(98)), finish_reason="stop"),
    ]
    line = make_line(job(), pieces, ByteTokenizer())
    assert re.fullmatch("[0-9a-f]{16}", line.pop("request"))
    assert line == {
        "id": "a",
        "sample": 2,
        "seed": 5,
        "finish_reason": "stop",
        "text": "ñb",
        "tokens": [195, 177, 98],
    }


@pytest.mark.parametrize("data", [b"a\xff\xc3", "a�".encode(), b""])
def test_no_byte_is_lost(data):
    tokens = tuple(map(TextToken, data))
    piece = TextPiece(data=data, tokens=tokens, finish_reason="length")
    line = json.loads(json.dumps(make_line(job(), [piece], ByteTokenizer())))
    assert line["text"] == data.decode(errors="replace")
    assert ("bytes" in line) == (data == b"a\xff\xc3")
    found = base64.b64decode(line["bytes"]) if "bytes" in line else line["text"].encode()
    assert found == data == bytes(line["tokens"])


def test_log_probabilities_have_ids_and_text():
    token = TextToken(2, -0.5, ((2, -0.5), (0, -1.25)))
    piece = TextPiece(data="€".encode(), tokens=(token,), finish_reason="length")
    line = make_line(job(logprobs=2), [piece], CharTokenizer("ab€"))
    assert line["logprobs"] == [
        {
            "id": 2,
            "text": "€",
            "logprob": -0.5,
            "top": [
                {"id": 2, "text": "€", "logprob": -0.5},
                {"id": 0, "text": "a", "logprob": -1.25},
            ],
        }
    ]


JOBS = make_jobs(TextRequest(length=1, seed=3), "é", 3)


def line_of(n, **more):
    return JOBS[n].head() | {"text": f"text {n}"} | more


def fill(path, n_lines, *, resume=False):
    lines = Lines(path, JOBS, resume=resume)
    for n in range(lines.written, n_lines):
        lines.append(line_of(n))
    return path.read_bytes()


def test_lines_are_whole_after_each(tmp_path):
    path = tmp_path / "out.jsonl"
    lines = Lines(path, JOBS, resume=False)
    assert not path.exists()
    for n in range(3):
        lines.append(line_of(n))
        content = path.read_bytes()
        assert content.endswith(b"\n")
        assert [json.loads(line) for line in content.splitlines()] == [
            line_of(k) for k in range(n + 1)
        ]
        assert lines.written == n + 1


@pytest.mark.parametrize("n_before", [0, 1, 2, 3])
@pytest.mark.parametrize("cut", [0, 1, 12, 36, 48, 1000])
def test_a_run_goes_on_after_the_whole_lines(tmp_path, n_before, cut):
    whole = fill(tmp_path / "whole.jsonl", 3)
    lines = whole.splitlines(keepends=True)
    begun = b"".join(lines[:n_before]) + b"".join(lines[n_before : n_before + 1])[:-1][:cut]
    path = tmp_path / "out.jsonl"
    path.write_bytes(begun)
    assert Lines(path, JOBS, resume=True).written == n_before
    assert path.read_bytes() == begun  # until there is a line to write
    assert fill(path, 3, resume=True) == whole


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"notes\n", 1),
        (b"notes", 1),
        (b"\n", 1),
        (b'{"id": "b", "sample": 0, "seed": 3, "request": "HEX", "text": ""}\n', 1),
        (b'{"id": "\\u00e9", "sample": 0, "seed": 4, "request": "HEX", "text": ""}\n', 1),
        (b'{"id": "\\u00e9", "sample": 0, "seed": 3, "request": "0", "text": ""}\n', 1),
        (
            b'{"id": "\\u00e9", "sample": 0, "seed": 3, "request": "HEX", "text": ""}\n'
            b'{"id": "\\u00e9", "seed',
            2,
        ),
        (b"WHOLE", 4),
        (b"WHOLE\n", 4),
    ],
)
def test_no_other_file_is_written_to(tmp_path, content, number):
    path = tmp_path / "out.jsonl"
    content = content.replace(b"WHOLE", fill(tmp_path / "whole.jsonl", 3) + b'{"id"')
    content = content.replace(b"HEX", JOBS[0].head()["request"].encode())
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"line {number} of the output '.*' is not of these"):
        Lines(path, JOBS, resume=True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": [1, 2]},
        {"length": 2},
        {"settings": SamplingConfig(temperature=0.5)},
        {"stop": (b"x",)},
        {"logprobs": 0},
    ],
)
def test_lines_of_other_requests_are_not_gone_on_after(tmp_path, change):
    path = tmp_path / "out.jsonl"
    fill(path, 2)
    others = [replace(job, request=replace(job.request, **change)) for job in JOBS]
    with pytest.raises(UserError, match=r"line 1 of the output '.*' is not of these prompts"):
        Lines(path, others, resume=True)
    with pytest.raises(UserError, match="or of another model"):
        Lines(path, [replace(job, model="other") for job in JOBS], resume=True)
    assert Lines(path, JOBS, resume=True).written == 2


def test_a_file_that_holds_something_is_written_to_only_on_request(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="is not empty; go on after its lines with --resume"):
        Lines(path, JOBS, resume=False)
    assert path.read_bytes() == b"x"
    path.write_bytes(b"")
    assert len(fill(path, 3).splitlines()) == 3


class Torn:
    """A file to which half a line can be written."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def truncate(self, size):
        self.file.truncate(size)

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise self.error


@pytest.mark.parametrize(
    ("error", "seen"),
    [(OSError(28, "No space left on device"), UserError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
@pytest.mark.parametrize("n_before", [0, 2])
def test_a_line_that_could_not_be_written_leaves_those_before(
    tmp_path, monkeypatch, error, seen, n_before
):
    path = tmp_path / "out.jsonl"
    lines = Lines(path, JOBS, resume=False)
    for n in range(n_before):
        lines.append(line_of(n))
    before = path.read_bytes() if n_before else None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: Torn(FileIO(path, mode), error))
        with pytest.raises(seen):
            lines.append(line_of(n_before))
    assert (path.read_bytes() if n_before else None) == before
    assert path.exists() == (n_before > 0)
    assert lines.written == n_before
    lines.append(line_of(n_before))
    assert len(path.read_bytes().splitlines()) == n_before + 1


def test_numbers_of_a_line_are_those_that_were_found():
    token = TextToken(0, math.log(1 / 3), ())
    piece = TextPiece(data=b"a", tokens=(token,), finish_reason="length")
    line = json.loads(json.dumps(make_line(job(logprobs=0), [piece], CharTokenizer("ab"))))
    assert line["logprobs"] == [{"id": 0, "text": "a", "logprob": math.log(1 / 3), "top": []}]
