"""The log of a run that goes on."""

from sparse_tx.training.metrics import MetricsLog


def test_lines_that_cannot_be_read_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [b'{"step": 1}\n', b'{"step": 2}\n']
    damaged = [b'{"st\xffep": 2}\n', b"\x80\n", b"[1]\n", b'{"step": 9}\n', b'{"step": 2']
    path.write_bytes(good[0] + b"".join(damaged[:4]) + good[1] + damaged[4])
    log = MetricsLog(tmp_path, from_step=2)
    log.write({"step": 3})
    log.close()
    assert path.read_bytes() == b"".join(good) + b'{"step": 3}\n'
