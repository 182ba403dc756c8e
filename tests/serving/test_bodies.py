"""Every mistake in a body is told in one sentence that names what is at fault."""

import pytest

pytest.importorskip("pydantic")

from pydantic import ValidationError

from sparse_tx.data import ByteTokenizer, CharTokenizer
from sparse_tx.serving.bodies import CompletionBody, SurpriseBody, parse_body
from sparse_tx.serving.completions import plan_completion
from sparse_tx.serving.limits import Limits
from sparse_tx.serving.refused import Refused

LIMITS = Limits(max_concurrent=4, max_waiting=3, max_prompt_bytes=20, max_tokens_limit=50)


def plan(data, tokenizer=None):
    body = parse_body(CompletionBody, data)
    return plan_completion(body, tokenizer or ByteTokenizer(), LIMITS, "small")


@pytest.mark.parametrize(
    ("data", "param", "sentence"),
    [
        (b"", None, "no valid JSON"),
        (b'{"prompt": "a"', None, "no valid JSON"),
        (b'{"prompt": "\xe2\x82"}', None, "not UTF-8 (at byte 12)"),
        (b"[" * 100_000, None, "nested too deep"),
        (b'["prompt"]', None, 'the body is ["prompt"]; it must be an object'),
        (b'{"temperature": NaN}', None, "NaN is no number of JSON"),
        (b'{"top_p": -Infinity}', None, "-Infinity is no number of JSON"),
        (b'{"seed": %s}' % (b"9" * 5000), None, "a number has 5,000 digits"),
        (b'{"promt": 1}', "promt", "unknown field \"promt\": did you mean 'prompt'? the fields"),
        (b'{"\\ud800": 1}', "\\ud800", 'unknown field "\\ud800": the fields are model'),
        (b'{"prompt": 7}', "prompt", "prompt is 7; it must be a string, a list of token ids"),
        (b'{"prompt": ["a", 7]}', "prompt", 'prompt is ["a", 7]; it must be'),
        (b'{"prompt": [1.5]}', "prompt", "prompt is [1.5]; it must be"),
        (b'{"prompt": [true]}', "prompt", "prompt is [true]; it must be"),
        (b'{"prompt": {"a": 1}}', "prompt", 'prompt is {"a": 1}; it must be'),
        (b'{"prompt": []}', "prompt", "prompt is an empty list"),
        (b'{"prompt": "\\ud83d"}', "prompt", "prompt has \\ud83d at character 0"),
        (b'{"prompt": "a\\udc00"}', "prompt", "prompt has \\udc00 at character 1"),
        (
            b'{"prompt": [256]}',
            "prompt",
            "token 256 of the prompt: the model's tokens are 0",
        ),
        (b'{"prompt": [[-1]]}', "prompt", "token -1 of the prompt"),
        (b'{"prompt": [1e400]}', "prompt", "prompt is [Infinity]; it must be"),
        (b'{"prompt": [%s]}' % (b"9" * 30), "prompt", "token 999"),
        (
            b'{"prompt": "%s"}' % (b"a" * 21),
            "prompt",
            "prompt has 21 bytes; this server takes",
        ),
        (b'{"prompt": ["%s", "12345678901"]}' % (b"a" * 10), "prompt", "prompt has 21 bytes"),
        (
            b'{"prompt": ["","","","","","","",""]}',
            "prompt",
            "8 prompts; this server makes up to",
        ),
        (b'{"prompt": ["","","",""], "n": 2}', "n", "4 prompts and n 2 make 8 texts"),
        (b'{"n": 0}', "n", "n is 0; it must be from 1 to 7"),
        (b'{"n": 8}', "n", "n is 8; it must be from 1 to 7"),
        (b'{"n": "2"}', "n", 'n is "2"; it must be a whole number'),
        (b'{"n": 2.0}', "n", "n is 2.0; it must be a whole number"),
        (b'{"n": true}', "n", "n is true; it must be a whole number"),
        (b'{"max_tokens": -1}', "max_tokens", "max_tokens is -1; it must be from 0 to 50"),
        (b'{"max_tokens": 51}', "max_tokens", "max_tokens is 51; it must be from 0 to 50"),
        (b'{"temperature": -0.5}', "temperature", "temperature is -0.5; it must be 0 or more"),
        (b'{"temperature": 1e400}', "temperature", "temperature is inf; it must be 0 or more"),
        (b'{"temperature": "hot"}', "temperature", 'temperature is "hot"; it must be a number'),
        (b'{"temperature": true}', "temperature", "temperature is true; it must be a number"),
        (b'{"temperature": [1]}', "temperature", "temperature is [1]; it must be a number"),
        (b'{"top_p": 0}', "top_p", "top_p is 0.0; it must be above 0"),
        (b'{"top_p": 1.01}', "top_p", "top_p is 1.01; it must be above 0 and at most 1"),
        (b'{"top_k": 0}', "top_k", "top_k is 0; it must be 1 or more"),
        (b'{"min_p": 2}', "min_p", "min_p is 2.0; it must be"),
        (
            b'{"repetition_penalty": 0}',
            "repetition_penalty",
            "repetition_penalty is 0.0; it must",
        ),
        (b'{"repetition_window": 0}', "repetition_window", "repetition_window is 0; it must be"),
        (b'{"seed": -1}', "seed", "seed is -1; it must be from 0"),
        (b'{"seed": 9223372036854775807, "n": 2}', "seed", "seed is 9223372036854775808"),
        (b'{"logprobs": 21}', "logprobs", "logprobs is 21; it must be from 0 to 20"),
        (b'{"logprobs": true}', "logprobs", "logprobs is true; it must be a whole number"),
        (b'{"stop": ""}', "stop", "stop is an empty string"),
        (b'{"stop": ["a", ""]}', "stop", "stop is an empty string"),
        (b'{"stop": ["a", "b", "c", "d", "e"]}', "stop", "stop has 5 strings; it can have 4"),
        (b'{"stop": 7}', "stop", "stop is 7; it must be a string, or a list"),
        (b'{"stop": "\\ud800"}', "stop", "stop has \\ud800 at character 0"),
        (b'{"echo": 1}', "echo", "echo is 1; it must be true or false"),
        (b'{"stream": "yes"}', "stream", 'stream is "yes"; it must be true or false'),
        (b'{"stream_options": {"include_usage": true}}', "stream_options", "set stream too"),
        (b'{"stream": true, "stream_options": {"x": 1}}', "stream_options", 'is {"x": 1}; it must'),
        (
            b'{"model": "large"}',
            "model",
            "this server has 'small'",
        ),
        (b'{"suffix": "x"}', "suffix", "suffix is not supported"),
        (b'{"best_of": 2}', "best_of", "best_of is 2 and n 1"),
        (b'{"presence_penalty": 0.5}', "presence_penalty", "presence_penalty is 0.5; only 0"),
        (b'{"frequency_penalty": -1}', "frequency_penalty", "frequency_penalty is -1.0; only 0"),
        (b'{"logit_bias": {"50256": -100}}', "logit_bias", "logit_bias is not supported"),
    ],
)
def test_mistakes(data, param, sentence):
    with pytest.raises(Refused) as caught:
        plan(data)
    message = str(caught.value)
    assert sentence in message and "\n" not in message and len(message) < 500
    assert (caught.value.param, caught.value.status // 100) == (param, 4)


@pytest.mark.parametrize("prompt", [[1.5] * 999, [[1.5] * 999] * 99, ["a"] + [None] * 999])
def test_a_long_list_of_mistakes_is_one_mistake(prompt):
    with pytest.raises(ValidationError) as caught:
        CompletionBody.model_validate({"prompt": prompt})
    assert caught.value.error_count() <= 5  # one for each kind that it might have been


def test_long_values_are_cut_short():
    with pytest.raises(Refused) as caught:
        plan(b'{"temperature": "%s"}' % (b"x" * 1000))
    assert str(caught.value) == f'temperature is "{"x" * 56}...; it must be a number'


def test_nothing_is_enough():
    made = plan(b"{}")
    [text] = made.texts
    assert text.prompt.tolist() == [] and text.length == 16 and text.stop == ()
    assert not (made.stream or made.echo or made.include_usage) and made.logprobs is None


def test_null_is_as_good_as_nothing():
    nothing = ", ".join(f'"{name}": null' for name in CompletionBody.model_fields)
    [text] = plan(b"{%s}" % nothing.encode()).texts
    assert text.settings == plan(b"{}").texts[0].settings and text.length == 16


def test_everything_arrives():
    made = plan(
        b'{"model": "small", "prompt": ["a\\u20ac", "b"], "max_tokens": 7, "temperature": 0.5,'
        b' "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5,'
        b' "repetition_window": 9,'
        b' "n": 2, "best_of": 2, "stream": true, "stream_options": {"include_usage": true},'
        b' "logprobs": 3, "echo": true, "stop": ["x", "\\u20ac"], "seed": 40, "user": "me",'
        b' "suffix": "", "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}'
    )
    assert [prompt.data for prompt in made.prompts] == ["a€".encode(), b"b"]
    assert [bytes(text.prompt.tolist()) for text in made.texts] == ["a€".encode()] * 2 + [b"b"] * 2
    assert [text.seed for text in made.texts] == [40, 41, 42, 43]
    assert made.stream and made.include_usage and made.echo and (made.n, made.logprobs) == (2, 3)
    for text in made.texts:
        assert (text.length, text.stop, text.logprobs) == (7, (b"x", "€".encode()), 3)
        assert text.settings.temperature == 0.5 and text.settings.top_p == 0.9
        assert text.settings.top_k == 5 and text.settings.min_p == 0.1
        assert text.settings.repetition_penalty == 1.5 and text.settings.repetition_window == 9


@pytest.mark.parametrize("prompt", ["[97, 98]", "[[97, 98]]", '"ab"', '["ab"]'])
def test_prompts_of_every_kind(prompt):
    [made] = plan(b'{"prompt": %s}' % prompt.encode()).prompts
    assert (made.data, made.tokens) == (b"ab", [97, 98])


def test_a_prompt_that_the_tokenizer_does_not_know():
    with pytest.raises(Refused, match="has no symbol") as caught:
        plan(b'{"prompt": "abX"}', CharTokenizer("ab"))
    assert caught.value.param == "prompt"


def test_seeds_differ_where_none_is_given():
    assert len({plan(b"{}").texts[0].seed for _ in range(10)}) == 10


def test_no_tokens_are_no_texts():
    assert plan(b'{"max_tokens": 0, "prompt": "a"}').texts == []


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{}", "text is missing; it must be a string"),
        (b'{"text": null}', "text is null; it must be a string"),
        (b'{"text": "a", "layer": 1}', 'unknown field "layer": the fields are text, top'),
    ],
)
def test_mistakes_in_what_shall_be_scored(data, sentence):
    with pytest.raises(Refused) as caught:
        parse_body(SurpriseBody, data)
    assert sentence in str(caught.value)
