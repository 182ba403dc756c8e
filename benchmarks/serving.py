"""The server under load: many clients that stream at once, for a minute and then for another.

    python benchmarks/serving.py --checkpoint RUN --out benchmarks/results/serving.json

Each client asks for one text after another, of prompts of many lengths, and reads it as a stream.
Every third text it leaves in the middle. What is told: errors; tokens a second; how evenly the
clients got on; how long the first token took, and how long the longest pause within a stream was;
and the resident memory of the server before, after the first minute and after the second. At the
end of each, no text may still be in the making.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from provenance import write_result

LEAVES_EVERY = 3
TOKENS = 256
COMMAND = "import sys; from sparse_tx.commands.main import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Client:
    """What one client saw in one period."""

    characters: int = 0
    texts: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    longest_pause_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--periods", type=int, default=2)
    parser.add_argument("--out")
    args = parser.parse_args()
    command = [sys.executable, "-c", COMMAND, "serve", "--checkpoint", args.checkpoint]
    command += ["--port", "0", "--device", "cpu", "--max_concurrent", str(args.clients)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            port = port_of(server)
            found = run(server.pid, port, args)
        finally:
            server.terminate()
            server.communicate()
    found["exit_status"] = server.returncode
    print(f"the server ended with status {server.returncode}")
    write_result(args.out, found, "starlette", "uvicorn")


def port_of(server: subprocess.Popen) -> int:
    """Wait until the server says where it is; the rest of what it says stays in the pipe."""
    for line in server.stderr:
        print(line, end="")
        if where := re.search(r"serving +http://127\.0\.0\.1:(\d+)", line):
            return int(where[1])
    raise SystemExit("the server did not begin")


def run(pid: int, port: int, args: argparse.Namespace) -> dict:
    asyncio.run(period(port, 1, 0.5))  # libraries load and threads start
    memory = [resident_bytes(pid)]
    print(f"before: {memory[0] / 1e6:.0f} MB")
    periods = []
    for number in range(args.periods):
        generated = figure(port, "generated_tokens_total")
        began = time.perf_counter()
        clients = asyncio.run(period(port, args.clients, args.seconds))
        seconds = time.perf_counter() - began
        generated = figure(port, "generated_tokens_total") - generated
        still = growing_after(port)
        memory.append(resident_bytes(pid))
        told = summary(clients, generated, seconds) | {"still_growing": still}
        periods.append(told)
        print(f"period {number + 1}: {memory[-1] / 1e6:.0f} MB; " + json.dumps(told))
    return {
        "clients": args.clients,
        "seconds": args.seconds,
        "tokens_of_a_text": TOKENS,
        "resident_bytes": memory,
        "periods": periods,
    }


def summary(clients: list[Client], generated: float, seconds: float) -> dict:
    characters = sorted(client.characters for client in clients)
    first = sorted(value for client in clients for value in client.first_s)
    return {
        "errors": [error for client in clients for error in client.errors],
        "texts": sum(client.texts for client in clients),
        "left": sum(client.left for client in clients),
        "tokens_per_s": generated / seconds,
        "characters_of_clients": {"least": characters[0], "most": characters[-1]},
        "fairness": characters[0] / max(1, characters[-1]),
        "first_token_s": {"median": median(first), "most": first[-1]},
        "longest_pause_s": max(client.longest_pause_s for client in clients),
    }


async def period(port: int, n: int, seconds: float) -> list[Client]:
    clients = [Client() for _ in range(n)]
    end = time.perf_counter() + seconds
    await asyncio.gather(*(stay(port, n, client, end) for n, client in enumerate(clients)))
    return clients


async def stay(port: int, number: int, client: Client, end: float) -> None:
    """Ask for one text after another until it is time; the last one is cut off."""
    chance = random.Random(number)
    count = 0
    while time.perf_counter() < end:
        count += 1
        stops_at = chance.randrange(TOKENS) if count % LEAVES_EVERY == 0 else None
        body = {
            "prompt": "The quick brown fox jumps over the lazy dog. " * chance.randrange(20),
            "max_tokens": TOKENS,
            "stream": True,
            "seed": chance.randrange(2**31),
        }
        try:
            await one_text(port, body, client, stops_at, end)
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            client.errors.append(repr(error))


async def one_text(port: int, body: dict, client: Client, stops_at: int | None, end: float) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        data = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        asked = latest = time.perf_counter()
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError(f"status {status!r}: {await reader.read()!r}")
        received = 0
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                continue  # a head's line, or the length of a chunk
            now = time.perf_counter()
            if line == b"data: [DONE]\n":
                client.texts += 1
                return
            told = json.loads(line[6:])
            if "error" in told:
                raise ValueError(told["error"]["message"])
            if received == 0:
                client.first_s.append(now - asked)
            else:
                client.longest_pause_s = max(client.longest_pause_s, now - latest)
            latest = now
            added = len(told["choices"][0]["text"])
            received += max(1, added)
            client.characters += added
            if now > end or (stops_at is not None and received > stops_at):
                client.left += 1
                return
        raise ValueError("the stream broke off")
    finally:
        writer.close()


def figure(port: int, name: str) -> float:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return float(re.search(rf"^sparse_tx_{name} (\S+)$", answer.read().decode(), re.M)[1])


def growing_after(port: int, seconds: float = 10) -> float:
    """How many texts are in the making, a little after all clients have left."""
    end = time.perf_counter() + seconds
    while (growing := figure(port, "texts_growing")) and time.perf_counter() < end:
        time.sleep(0.1)
    return growing


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


if __name__ == "__main__":
    main()
