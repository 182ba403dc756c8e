"""The server as OpenAI's own client sees it."""

import asyncio
import math
import threading

import pytest

pytest.importorskip("openai")

import openai

from sparse_tx.config import SamplingConfig
from sparse_tx.data import CharTokenizer
from sparse_tx.generation import generate
from sparse_tx.serving.surprise import score_window, windows
from tests.serving.conftest import SEQ_LEN, WAIT_S, make_model, served, wait_until


def client_of(server, kind=openai.OpenAI):
    return kind(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=WAIT_S)


@pytest.fixture(scope="module")
def client(small):
    with client_of(small) as client:
        yield client


def continuation(model, prompt, length, seed, **settings):
    """What the server should make, as bytes, from the library's parts."""
    settings = SamplingConfig(**settings)
    steps = generate(model, list(prompt), length=length, settings=settings, seed=seed)
    return bytes(token.item() for token in steps)


def as_text(data):
    return data.decode("utf-8", errors="replace")


def test_texts_are_those_of_generate(client, model):
    made = client.completions.create(
        model="small", prompt=["ab", "c€"], n=2, max_tokens=2 * SEQ_LEN, seed=5, temperature=0.8,
        extra_body={"top_k": 50, "repetition_penalty": 1.2, "repetition_window": 8},
    )  # fmt: skip
    settings = dict(temperature=0.8, top_k=50, repetition_penalty=1.2, repetition_window=8)
    for index, prompt in enumerate(["ab", "ab", "c€", "c€"]):
        choice = made.choices[index]
        expected = continuation(model, prompt.encode(), 2 * SEQ_LEN, 5 + index, **settings)
        assert (choice.index, choice.text) == (index, as_text(expected))
        assert choice.finish_reason == "length" and choice.logprobs is None
    assert made.usage.prompt_tokens == 2 + 4
    assert made.usage.completion_tokens == 4 * 2 * SEQ_LEN
    assert made.usage.total_tokens == 6 + 8 * SEQ_LEN
    assert (made.object, made.model, made.system_fingerprint) == ("text_completion", "small", "f00")


def test_a_stream_is_the_same_in_pieces(client):
    asked = dict(model="small", prompt=["ab", "c"], max_tokens=40, seed=1, n=2, logprobs=2)
    whole = client.completions.create(**asked)
    chunks = list(client.completions.create(**asked, stream=True))
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}
    assert all(chunk.usage is None for chunk in chunks)
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
        for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            pieces = [each for part in parts for each in getattr(part.logprobs, field)]
            assert pieces == getattr(choice.logprobs, field)
    assert len(chunks) > 8


def test_usage_of_a_stream(client):
    asked = dict(model="small", prompt="ab", max_tokens=7, stream=True)
    *_, last = client.completions.create(**asked, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.completion_tokens == 7
    assert last.usage.prompt_tokens == 2 and last.usage.total_tokens == 9


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_a_text_before_it(client, stream):
    asked = dict(model="small", prompt="ab", max_tokens=60, temperature=0, seed=1)
    whole = client.completions.create(**asked).choices[0].text
    clean = [text for text in whole.split("\ufffd") if len(text) > 2]
    stop = (clean[0] if clean else whole)[:2]
    made = client.completions.create(**asked, stop=["never there", stop], stream=stream)
    chunks = list(made) if stream else [made]
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_no_chunk_has_half_a_character():
    tokenizer = CharTokenizer("abc€é😀")
    model = make_model(vocab_size=tokenizer.vocab_size)
    with served(model, tokenizer) as server, client_of(server) as client:
        asked = dict(model="small", prompt="é", max_tokens=80, seed=3, echo=True)
        text = "".join(c.choices[0].text for c in client.completions.create(**asked, stream=True))
        assert text == client.completions.create(**asked).choices[0].text
        assert set(text) <= set("abc€é😀") and len(text) == 81 and text[0] == "é"


def test_characters_that_bytes_cut(small, model):
    """A prompt that ends within a character is echoed with what completes it, or U+FFFD."""
    import json
    from urllib.request import Request, urlopen

    prompt = list("a€".encode()[:-1])
    body = {"prompt": prompt, "max_tokens": 30, "seed": 2, "echo": True, "logprobs": 0}
    with urlopen(Request(f"{small.address}/v1/completions", json.dumps(body).encode())) as answer:
        [choice] = json.load(answer)["choices"]
    data = bytes(prompt) + continuation(model, bytes(prompt), 30, 2)
    assert choice["text"] == as_text(data)
    assert choice["logprobs"]["tokens"][:3] == ["a", "bytes:\\xe2", "bytes:\\x82"]
    assert choice["logprobs"]["text_offset"][:3] == [0, 1, 1]
    assert max(choice["logprobs"]["text_offset"]) < len(choice["text"])


@pytest.mark.parametrize("max_tokens", [0, 6])
@pytest.mark.parametrize("stream", [False, True])
def test_an_echoed_prompt_is_scored(client, model, max_tokens, stream):
    prompt = "a prompt that is longer than the context of the model, of 32 tokens"
    made = client.completions.create(
        model="small", prompt=prompt, max_tokens=max_tokens, echo=True, logprobs=3, seed=2,
        stream=stream,
    )  # fmt: skip
    choices = [choice for chunk in (list(made) if stream else [made]) for choice in chunk.choices]
    text = "".join(choice.text for choice in choices)
    logprobs = [value for choice in choices for value in choice.logprobs.token_logprobs]
    top = [each for choice in choices for each in choice.logprobs.top_logprobs]
    assert text.startswith(prompt) and choices[-1].finish_reason == "length"
    data = list(prompt.encode()) + list(continuation(model, prompt.encode(), max_tokens or 1, 2))
    data = data[: len(prompt) + max_tokens]
    expected = [
        value
        for window in windows(len(data), SEQ_LEN)
        for value in score_window(model, data, window, 0).logprobs
    ]
    assert logprobs == pytest.approx(expected, abs=1e-4) and len(logprobs) == len(data)
    assert all(len(each) == 3 and max(each.values()) < 0 for each in top)
    assert all(sum(map(math.exp, each.values())) <= 1 for each in top)


def test_mistakes_are_the_clients_exceptions(client):
    with pytest.raises(openai.BadRequestError, match="temperature is -1") as caught:
        client.completions.create(model="small", prompt="a", temperature=-1)
    assert caught.value.param == "temperature" and caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError, match="this server has 'small'") as caught:
        client.completions.create(model="davinci", prompt="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="unknown field"):
        client.completions.create(model="small", prompt="a", extra_body={"top_a": 1})
    with pytest.raises(openai.BadRequestError, match="max_tokens is 99999"):
        client.completions.create(model="small", prompt="a", max_tokens=99999, stream=True)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "sparse_tx"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("large")


def test_two_streams_go_on_together(model):
    with served(model, max_concurrent=2, max_tokens_limit=10**6) as server:
        with client_of(server) as client:
            asked = dict(model="small", prompt="a", max_tokens=10**6, stream=True)
            first = client.completions.create(**asked)
            second = client.completions.create(**asked)
            for _ in range(20):
                next(first), next(second)
            first.close()
            second.close()
        wait_until(lambda: not server.worker._growing)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(model, stream):
    with served(model, max_concurrent=1, max_waiting=0, max_tokens_limit=10**6) as server:
        with client_of(server) as client:
            if stream:
                made = client.completions.create(
                    model="small", prompt="a", max_tokens=10**6, stream=True
                )
                next(made)
                made.close()
            else:
                hurried = client.with_options(timeout=0.5)
                with pytest.raises(openai.APITimeoutError):
                    hurried.completions.create(model="small", prompt="a", max_tokens=10**6)
            wait_until(lambda: server.worker._slots.free == 1)
            assert client.completions.create(model="small", prompt="a", max_tokens=3).choices
            metrics = client.get("/../metrics", cast_to=str)
        assert "sparse_tx_clients_left_total 1.0" in metrics


def test_who_comes_when_all_is_taken_is_told_so(model):
    limits = dict(max_concurrent=1, max_waiting=0, max_tokens_limit=10**6)
    with served(model, **limits) as server, client_of(server) as client:
        made = client.completions.create(model="small", prompt="a", max_tokens=10**6, stream=True)
        next(made)
        with pytest.raises(openai.RateLimitError, match="the server is busy") as caught:
            client.completions.create(model="small", prompt="a")
        assert caught.value.response.headers["retry-after"] == "1"
        made.close()


def test_results_under_load_are_those_alone(model):
    prompts = ["ab", "", "a longer prompt " * 4, "€"]
    asked = [
        dict(prompt=prompts[n % 4], seed=n, max_tokens=20 + n, temperature=0.5 + n / 8, logprobs=1)
        for n in range(12)
    ]

    async def under_load(server):
        async with client_of(server, openai.AsyncOpenAI) as client:
            calls = [client.completions.create(model="small", **each) for each in asked]
            return await asyncio.gather(*calls)

    with served(model, max_concurrent=5, max_waiting=12) as server:
        with client_of(server) as client:
            alone = [client.completions.create(model="small", **each) for each in asked]
        loaded = asyncio.run(under_load(server))
    assert [made.choices for made in loaded] == [made.choices for made in alone]


def test_a_signal_lets_what_is_being_made_end(model, monkeypatch):
    monkeypatch.setattr("sparse_tx.serving.server.GRACE_S", 0.5)
    with served(model, max_tokens_limit=10**6) as server, client_of(server) as client:
        asked = dict(model="small", prompt="a", stream=True)
        short = client.completions.create(**asked, max_tokens=30)
        endless = client.completions.create(**asked, max_tokens=10**6)
        next(short), next(endless)
        threading.Timer(0.2, lambda: server.server.handle_exit(15, None)).start()
        assert [*short][-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIError, match="shutting down"):
            list(endless)
