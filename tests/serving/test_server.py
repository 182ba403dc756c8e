"""The server as HTTP sees it: statuses, limits, its other addresses, broken connections."""

import http.client
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from sparse_tx.errors import UserError
from sparse_tx.serving.server import address_of, is_loopback, listen
from sparse_tx.serving.surprise import score_window, tokens_read, windows
from tests.serving.conftest import SEQ_LEN, WAIT_S, make_model, served, wait_until


def send(server, method, path, body=None, headers=()):
    """Status, headers and body of an answer."""
    connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=WAIT_S)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def post(server, path, body):
    """Status and parsed body of an answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, answer = send(server, "POST", path, data)
    return status, json.loads(answer)


def get(server, path):
    status, _, answer = send(server, "GET", path)
    return status, json.loads(answer)


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/v1/completions", b"{", 400, "no valid JSON"),
        ("/v1/completions", b"\xff\xfe", 400, "not UTF-8"),
        ("/v1/completions", b"", 400, "no valid JSON"),
        ("/v1/completions", {"promt": "a"}, 400, "unknown field"),
        ("/v1/completions", {"\ud800": "a"}, 400, "unknown field"),
        ("/v1/completions", {"model": "\ud800"}, 404, "is not here"),
        ("/v1/completions", {"prompt": "\ud800"}, 400, "half a surrogate pair"),
        ("/v1/completions", {"temperature": -1}, 400, "temperature is -1"),
        ("/v1/completions", {"prompt": ["a", 1]}, 400, "prompt is"),
        ("/v1/completions", {"prompt": "a" * 65_537}, 400, "prompt has 65,537 bytes"),
        ("/v1/completions", {"prompt": "a" * 3_000_000}, 413, "the body has more than 1,114,112"),
        ("/surprise", {}, 400, "text is missing"),
        ("/surprise", {"text": ""}, 400, "text is empty"),
        ("/surprise", {"text": "\ud800"}, 400, "half a surrogate pair"),
        ("/surprise", {"text": "a" * 65_537}, 400, "text has 65,537 bytes"),
        ("/surprise", {"text": "a", "top": 21}, 400, "top is 21"),
        ("/nothing", {}, 404, "there is nothing at /nothing"),
        ("/about", {}, 405, "/about does not take POST"),
    ],
)
def test_mistakes_get_a_sentence(small, path, body, status, sentence):
    found, answer = post(small, path, body)
    assert found == status
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert sentence in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_long_body_is_not_read_to_its_end(small):
    """Neither one that says how long it is, nor one that comes in chunks and does not."""
    address = urlsplit(small.address)
    for head in ("Content-Length: 100000000000", "Transfer-Encoding: chunked"):
        with socket.create_connection((address.hostname, address.port), timeout=WAIT_S) as client:
            client.sendall(f"POST /surprise HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n".encode())
            if "chunked" in head:
                for _ in range(20):
                    client.sendall(b"%x\r\n" % 60_000 + b"a" * 60_000 + b"\r\n")
            assert b" 413 " in client.recv(10_000).split(b"\r\n")[0]


def test_pages_of_other_sites_are_refused(small):
    others = ("http://evil.example", "null", "http://[")
    for origin, status in (*((other, 403) for other in others), (small.address, 200)):
        found, _, body = send(
            small, "POST", "/v1/completions", b'{"max_tokens": 1}', {"Origin": origin}
        )
        assert found == status and (status == 200 or b"may not use this server" in body)


def test_prompts_are_told_of_no_more_often_than_they_may_be_given(model):
    with served(model, max_prompt_bytes=100) as server:
        body = {"prompt": "x" * 40, "echo": True, "max_tokens": 0, "n": 2, "logprobs": 1}
        assert send(server, "POST", "/v1/completions", json.dumps(body).encode())[0] == 200
        for changed, status in (({"n": 3}, 400), ({"n": 3, "logprobs": None}, 200)):
            found, _, told = send(
                server, "POST", "/v1/completions", json.dumps(body | changed).encode()
            )
            assert found == status and (status == 200 or b"of 120 bytes of prompts" in told)


def test_a_client_that_leaves_before_its_body_is_whole(small):
    address = urlsplit(small.address)
    with socket.create_connection((address.hostname, address.port), timeout=WAIT_S) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    wait_until(lambda: b'path="/v1/completions",status="499"' in send(small, "GET", "/metrics")[2])
    assert get(small, "/health") == (200, {"status": "ok"})


def test_surprise_is_the_models(small, model):
    text = "a text of mörë than the 32 tokens which the context holds"
    data = list(text.encode())
    status, told = post(small, "/surprise", {"text": text, "top": 2})
    scores = [score_window(model, data, window, 2) for window in windows(len(data), SEQ_LEN)]
    expected = [-value / 0.6931471805599453 for each in scores for value in each.logprobs]
    assert status == 200 and told["tokens"] == data
    assert told["surprise"] == pytest.approx(expected, abs=1e-3)
    assert told["bits_per_byte"] == pytest.approx(sum(expected) / len(data), abs=1e-6)
    assert {len(each) for each in told["top"]} == {2}
    assert told["bytes"][str(ord("a"))] == "61"


def test_reads_are_told_as_ranges(small, model):
    status, told = get(small, "/reads?layer=1&head=0&token=50")
    reads = tokens_read(model.config, layer=1, head=0, token=50)
    assert status == 200 and told["start_symbol"] == reads.start_symbol
    assert [range(*each) for each in told["tokens"]] == reads.tokens


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "layer is ''; it must be a whole number"),
        ("?layer=0&head=x&token=0", "head is 'x'"),
        ("?layer=0&head=0&token=-1", "token is '-1'"),
        ("?layer=0&head=0&token=%D9%A3", "token is "),
        ("?layer=2&head=0&token=1", "layer is 2; the model has 2"),
        ("?layer=0&head=0&token=" + "9" * 30, "token is '99"),
    ],
)
def test_mistakes_in_what_is_read(small, query, sentence):
    status, answer = get(small, f"/reads{query}")
    assert status == 400 and sentence in answer["error"]["message"]


def test_about(small, model):
    status, about = get(small, "/about")
    assert status == 200
    assert about["patterns"] == [["local:5", "local:5"], ["strided:5", "strided:5"]]
    assert about["parameters"] == model.n_parameters() and about["step"] == 3


def test_metrics_are_counted(small):
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    def figures():
        status, headers, text = send(small, "GET", "/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(text.decode())
        return {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}

    before = figures()
    post(small, "/v1/completions", {"prompt": "abc", "max_tokens": 7})
    post(small, "/surprise", {"text": "abcde"})
    post(small, "/surprise", {})
    wait_until(lambda: figures()["sparse_tx_texts_growing",] == 0)
    after = figures()

    def grown(*name):
        return after[name] - before.get(name, 0)

    assert grown("sparse_tx_prompt_tokens_total") == 3
    assert grown("sparse_tx_generated_tokens_total") == 7
    assert grown("sparse_tx_scored_tokens_total") == 5
    assert grown("sparse_tx_first_token_seconds_count") == 1
    assert grown("sparse_tx_requests_total", "/v1/completions", "200") == 1
    assert grown("sparse_tx_requests_total", "/surprise", "400") == 1
    assert grown("sparse_tx_request_seconds_count", "/surprise") == 2
    assert after["sparse_tx_texts_waiting",] == 0


def test_the_page_lets_nothing_in_from_elsewhere(small):
    for path, kind in {"/": "html", "/page.css": "css", "/page.js": "javascript"}.items():
        status, headers, body = send(small, "GET", path)
        assert status == 200 and kind in headers["content-type"] and len(body) > 1000
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"//" not in body.replace(b"http://www.w3.org", b"").replace(b"// ", b"")


def test_answers_are_kept_apart_on_one_connection(small):
    connection = http.client.HTTPConnection(urlsplit(small.address).netloc, timeout=WAIT_S)
    for n in range(3):
        connection.request("POST", "/v1/completions", json.dumps({"max_tokens": 1 + n}))
        told = json.loads(connection.getresponse().read())
        assert told["usage"]["completion_tokens"] == 1 + n
    connection.close()


def test_a_defect_is_told_without_its_insides(model, monkeypatch):
    with served(model) as server:
        monkeypatch.setattr("sparse_tx.serving.app.tokens_read", None)
        status, answer = get(server, "/reads?layer=0&head=0&token=0")
        assert status == 500 and "an error inside the server" in answer["error"]["message"]
        assert b'path="/reads",status="500"' in send(server, "GET", "/metrics")[2]
        assert get(server, "/health")[0] == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_lost_its_model_ends(monkeypatch):
    with served(make_model()) as server:
        assert get(server, "/health")[0] == 200
        monkeypatch.setattr("sparse_tx.serving.worker.draw_tokens", None)
        status, answer = post(server, "/v1/completions", {"prompt": "a"})
        assert status == 500 and "the model was lost" in answer["error"]["message"]
        assert answer["error"]["type"] == "server_error"
        wait_until(lambda: server.server.should_exit)
        assert server.server.lost_model


def test_a_server_that_ends_says_so(model):
    with served(model) as server:
        server.worker.drain(WAIT_S)
        assert get(server, "/health") == (503, {"status": "not serving"})
        status, answer = post(server, "/v1/completions", {"prompt": "a"})
        assert status == 503 and "shutting down" in answer["error"]["message"]


def test_many_short_requests_leave_no_thread_and_no_job(model):
    with served(model) as server:
        post(server, "/v1/completions", {})
        before = threading.active_count()
        for n in range(30):
            assert post(server, "/v1/completions", {"n": 1 + n % 4, "max_tokens": 2})[0] == 200
        assert threading.active_count() <= before + 1
        wait_until(lambda: server.worker._slots.free == 4)
        assert not server.worker._waiting and not server.worker._found


def test_listening():
    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        assert address_of(sock) == f"http://127.0.0.1:{port}" and is_loopback(sock)
        with pytest.raises(UserError, match=f"cannot listen at port {port} of '127.0.0.1'"):
            listen("127.0.0.1", port)
    with listen("0.0.0.0", 0) as sock:
        assert not is_loopback(sock)
    for port in (-1, 65_536):
        with pytest.raises(UserError, match="must be from 0"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"cannot listen at port 80 of '203\.0\.113\.7'"):
        listen("203.0.113.7", 80)
    with pytest.raises(UserError, match="cannot listen at port 80 of 'no such name'"):
        listen("no such name", 80)
