"""Texts that end on their own: stop strings, log-probabilities, and batches of unlike requests."""

import math
from collections import defaultdict
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_tx.config import SamplingConfig
from sparse_tx.data import CharTokenizer
from sparse_tx.data.tokenizers import Tokenizer
from sparse_tx.errors import UserError
from sparse_tx.generation import TextRequest, first_kept, generate, generate_texts
from tests.helpers import cut_before_first_stop

LETTERS = CharTokenizer("abcdefghij€")  # eleven tokens, the last of three bytes
GREEDY = SamplingConfig(temperature=0)


class Words(Tokenizer):
    """A token for each word."""

    kind = "words"

    def __init__(self, *words):
        self.words = words
        self.token_bytes = np.array([len(word) for word in words])

    def _decode(self, ids):
        return b"".join(self.words[id] for id in ids)


def collect(model, tokenizer, requests):
    """Of each request its bytes, its tokens and all finish reasons that were given."""
    made = defaultdict(lambda: (bytearray(), [], []))
    for n, piece in generate_texts(model, tokenizer, requests):
        data, tokens, reasons = made[n]
        assert not reasons, "a piece after the last"
        data.extend(piece.data)
        tokens.extend(piece.tokens)
        if piece.finish_reason is not None:
            reasons.append(piece.finish_reason)
    return [(bytes(made[n][0]), *made[n][1:]) for n in range(len(requests))]


REQUESTS = [
    TextRequest(prompt=[1, 2], length=9, seed=3),
    TextRequest(prompt=[], length=14, seed=3, settings=SamplingConfig(top_k=3)),
    TextRequest(prompt=[5] * 20, length=1, seed=8),
    TextRequest(prompt=[4], length=11, seed=1, settings=SamplingConfig(repetition_penalty=1.7)),
    TextRequest(prompt=[1, 2], length=9, seed=3),
    TextRequest(
        prompt=[0, 0, 3],
        length=13,
        seed=5,
        settings=SamplingConfig(repetition_penalty=0.6, repetition_window=2, temperature=1.3),
    ),
]


def test_texts_of_one_batch_are_those_that_are_made_alone(model):
    together = collect(model, LETTERS, REQUESTS)
    for request, (data, tokens, reasons) in zip(REQUESTS, together, strict=True):
        alone = generate(
            model,
            request.prompt,
            length=request.length,
            settings=request.settings,
            seed=request.seed,
        )
        ids = [int(token) for token in alone]
        assert [token.id for token in tokens] == ids
        assert data == LETTERS.decode(ids)
        assert reasons == ["length"]
    assert len({data for data, *_ in together}) == len(REQUESTS) - 1  # two are the same request


def test_pieces_come_in_turn_and_texts_that_have_ended_leave_the_batch(model):
    lengths = [3, 1, 4]
    requests = [TextRequest(prompt=[1], length=length) for length in lengths]
    order = [n for n, _ in generate_texts(model, LETTERS, requests)]
    assert order == [0, 1, 2, 0, 2, 0, 2, 2]
    assert [len(batch) for batch in model.inputs] == [3, 2, 2, 1]


def test_the_context_of_each_text_is_its_own(model):
    prompts = [[n % 11 for n in range(length)] for length in (0, 3, 6, 7, 25)]
    requests = [TextRequest(prompt=prompt, length=10, seed=2) for prompt in prompts]
    texts = collect(model, LETTERS, requests)
    seen = [row for batch in model.inputs for row in batch]
    for prompt, (_, tokens, _) in zip(prompts, texts, strict=True):
        whole = prompt + [token.id for token in tokens]
        for end in range(len(prompt), len(whole)):
            assert [11, *whole[first_kept(end, 7) : end]] in seen


words = st.lists(st.text("ab", min_size=1, max_size=4), min_size=2, max_size=4, unique=True)


@given(words, st.lists(st.text("ab", min_size=1, max_size=5), max_size=3), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_ends_right_before_the_first_stop_string(scripted, vocabulary, stops, data):
    tokenizer = Words(*(word.encode() for word in vocabulary))
    id = st.integers(0, len(vocabulary) - 1)
    script = data.draw(st.lists(id, min_size=1, max_size=12))
    stops = [stop.encode() for stop in stops]
    request = TextRequest(length=len(script), settings=GREEDY, stop=stops)
    [(text, tokens, reasons)] = collect(scripted(script, len(vocabulary)), tokenizer, [request])
    expected, stopped = cut_before_first_stop(tokenizer.decode(script), stops)
    assert text == expected
    assert reasons == ["stop" if stopped else "length"]
    # The tokens are those that begin in the text.
    begins = [len(tokenizer.decode(script[:n])) for n in range(len(script))]
    expected_ids = [id for id, begin in zip(script, begins, strict=True) if begin < len(expected)]
    assert [token.id for token in tokens] == expected_ids


def test_nothing_is_generated_after_a_stop_string(scripted):
    tokenizer = Words(b"a", b"b", b"c")
    model = scripted([0, 0, 1, 2, 0, 0], 3)
    stop = TextRequest(length=6, settings=GREEDY, stop=[b"bc"])
    other = TextRequest(length=6, settings=GREEDY, stop=[b"x"])
    texts = collect(model, tokenizer, [stop, other])
    assert [text for text, *_ in texts] == [b"aa", b"aabcaa"]
    assert [len(batch) for batch in model.inputs] == [2, 2, 2, 2, 1, 1]


def test_a_prompt_is_not_searched_for_stop_strings(scripted):
    model = scripted([0, 1, 0, 2], 3)
    request = TextRequest(prompt=[0], length=3, settings=GREEDY, stop=[b"ab"])
    [(text, _, reasons)] = collect(model, Words(b"a", b"b", b"c"), [request])
    assert (text, reasons) == (b"bac", ["length"])


def test_bytes_that_may_begin_a_stop_string_come_with_their_tokens_once_it_is_decided(scripted):
    model = scripted([0, 1, 0, 1, 2, 1], 3)
    request = TextRequest(length=6, settings=GREEDY, stop=[b"abab!"], logprobs=0)
    pieces = [piece for _, piece in generate_texts(model, Words(b"a", b"b", b"c"), [request])]
    assert [piece.data for piece in pieces] == [b"", b"", b"", b"", b"ababc", b"b"]
    assert [len(piece.tokens) for piece in pieces] == [0, 0, 0, 0, 5, 1]
    assert [piece.finish_reason for piece in pieces] == [None] * 5 + ["length"]


def test_what_is_held_back_is_given_at_the_end(scripted):
    model = scripted([0, 1, 1], 2)
    request = TextRequest(length=3, settings=GREEDY, stop=[b"bbb"])
    pieces = [piece for _, piece in generate_texts(model, Words(b"a", b"b"), [request])]
    assert [piece.data for piece in pieces] == [b"a", b"", b"bb"]
    assert [len(piece.tokens) for piece in pieces] == [1, 0, 2]


def test_log_probabilities_are_the_models_own_whatever_filters_are_set(model):
    filters = SamplingConfig(
        temperature=0.3, top_k=4, top_p=0.9, min_p=0.01, repetition_penalty=5.0
    )
    prompt = [3, 8]
    requests = [
        TextRequest(prompt=prompt, length=4, settings=filters, logprobs=k) for k in (None, 0, 3, 11)
    ]
    texts = collect(model, LETTERS, requests)
    assert len({data for data, *_ in texts}) == 1
    for k, (_, tokens, _) in zip((None, 0, 3, 11), texts, strict=True):
        prefix = [11, *prompt]
        for token in tokens:
            logits = model(torch.tensor([prefix]))[0, -1].tolist()
            total = math.log(sum(map(math.exp, logits)))
            expected = [logit - total for logit in logits]
            if k is None:
                assert (token.logprob, token.top) == (None, ())
            else:
                assert token.logprob == pytest.approx(expected[token.id], abs=1e-12)
                best = sorted(range(11), key=lambda id: -expected[id])[:k]
                assert [id for id, _ in token.top] == best
                values = [logprob for _, logprob in token.top]
                assert values == pytest.approx([expected[id] for id in best], abs=1e-12)
            prefix.append(token.id)
    assert sum(math.exp(value) for _, value in tokens[0].top) == pytest.approx(1, abs=1e-12)


def test_of_equally_probable_tokens_the_lower_ids_come_first(scripted):
    model = scripted([2], 4)
    request = TextRequest(length=1, settings=GREEDY, logprobs=3)
    [(_, [token], _)] = collect(model, Words(b"a", b"b", b"c", b"d"), [request])
    assert [id for id, _ in token.top] == [2, 0, 1]


def test_without_a_length_only_a_stop_string_ends_a_text(model, scripted):
    pieces = generate_texts(model, LETTERS, [TextRequest(prompt=[1], length=None)])
    assert all(piece.finish_reason is None for _, piece in islice(pieces, 100))
    assert len(list(islice(generate(model, [1], length=None), 100))) == 100
    request = TextRequest(length=None, settings=GREEDY, stop=[b"ba"])
    [(text, _, reasons)] = collect(scripted([0, 0, 1, 0], 2), Words(b"a", b"b"), [request])
    assert (text, reasons) == (b"aa", ["stop"])


def test_closing_the_iterator_ends_all_texts(model):
    pieces = generate_texts(model, LETTERS, REQUESTS)
    next(pieces)
    pieces.close()
    assert list(pieces) == []
    assert sum(map(len, model.inputs)) == len(REQUESTS)


def test_no_requests_give_no_pieces(model):
    assert list(generate_texts(model, LETTERS, [])) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "length is 0; it must be 1 or more"),
        ({"seed": -1}, "seed is -1; it must be from 0 to 2\\^63 - 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"stop": [b"a", b""]}, "a stop string is empty"),
        ({"stop": b"a"}, "stop is b'a'; it must be a sequence of bytes"),
        ({"stop": "a"}, "stop is 'a'; it must be a sequence of bytes"),
        ({"logprobs": -1}, "logprobs is -1; it must be 0"),
        ({"logprobs": 12}, "logprobs is 12; the model has 11 tokens"),
        ({"prompt": [3, 11]}, "token 11 of the prompt: the model's tokens are 0 to 10"),
    ],
)
def test_mistakes_are_answered_at_the_call(model, fields, message):
    with pytest.raises(UserError, match=message):
        request = TextRequest(**{"length": 1} | fields)
        generate_texts(model, LETTERS, [TextRequest(length=2), request])
    assert model.inputs == []
