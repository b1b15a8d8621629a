"""A server under load: clients at once against one after the other, and many clients for a while.

Starts ``whisper-at serve`` in a process of its own. In the first part the same requests are made one after the other
and by several clients at once; texts have to be equal. In the second part many clients ask again and again; every
answer has to be the text that the recording has alone, or a refusal with Retry-After. Processor time and memory are the
server's own figures (``/metrics``).
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import HelpFormatter, machine_info

ROOT = Path(__file__).parents[1]
SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")


class Server:
    """A running server."""

    def __init__(self, arguments: list[str], n_clients: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        keys = [part for i in range(n_clients) for part in ("--api_key", f"client-{i}")]
        command = [sys.executable, "-m", "whisper_at", "serve", "--quiet", "--head", "none", "--port", str(port)]
        self.address = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen([*command, *keys, *arguments])
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{self.address}/health")
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("the server did not start") from None
                time.sleep(0.1)

    def ask(self, path: Path, client: int = 0) -> tuple[int, str, float]:
        """Return status, text (or what is wrong) and Retry-After."""
        head = '--b\r\nContent-Disposition: form-data; name="temperature"\r\n\r\n0\r\n'
        head += f'--b\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + b"\r\n--b--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=b", "Authorization": f"Bearer client-{client}"}
        request = urllib.request.Request(f"{self.address}/v1/audio/transcriptions", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return answer.status, json.load(answer)["text"], 0.0
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]["message"], float(error.headers.get("Retry-After", 0))

    def figures(self) -> dict[str, float]:
        """Return what ``/metrics`` tells."""
        request = urllib.request.Request(f"{self.address}/metrics", headers={"Authorization": "Bearer client-0"})
        lines = urllib.request.urlopen(request).read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far."""
        return self.figures()["process_cpu_seconds_total"]

    @property
    def megabytes(self) -> float:
        """Memory now."""
        return self.figures()["process_resident_memory_bytes"] / 1e6

    def stop(self) -> None:
        """Stop it as an init system does."""
        self.process.terminate()
        self.process.wait(60)


def timed(server: Server, ask_all: Any) -> tuple[float, float, list[str]]:
    """Return seconds on the clock, seconds of the processor, and the texts of what `ask_all` asks."""
    wall, cpu = time.perf_counter(), server.cpu_seconds
    answers = ask_all()
    if any(status != 200 for status, _, _ in answers):
        raise SystemExit(f"refused: {next(text for status, text, _ in answers if status != 200)}")
    return time.perf_counter() - wall, server.cpu_seconds - cpu, [text for _, text, _ in answers]


def at_once(server: Server, files: list[Path], n_clients: int) -> dict[str, Any]:
    """Measure the same requests one after the other and by several clients at once."""
    server.ask(files[0])  # what is made once
    wall, cpu, alone = timed(server, lambda: [server.ask(path) for path in files])
    before = server.figures()
    with ThreadPoolExecutor(n_clients) as pool:

        def ask_all() -> list[tuple[int, str, float]]:
            return list(pool.map(lambda item: server.ask(item[1], item[0] % n_clients), enumerate(files)))

        wall_together, cpu_together, together = timed(server, ask_all)
    after = server.figures()
    windows = after["whisper_at_batch_windows_sum"] - before["whisper_at_batch_windows_sum"]
    batches = after["whisper_at_batch_windows_count"] - before["whisper_at_batch_windows_count"]
    return {
        "requests": len(files),
        "clients": n_clients,
        "equal_texts": sum(one == other for one, other in zip(alone, together)),
        "seconds": {"one after the other": round(wall, 2), "at once": round(wall_together, 2)},
        "cpu_seconds": {"one after the other": round(cpu, 2), "at once": round(cpu_together, 2)},
        "throughput_ratio": round(wall / wall_together, 2),
        "cpu_ratio": round(cpu / cpu_together, 2),
        "windows_per_batch": round(windows / batches, 2),
    }


def under_load(server: Server, files: list[Path], n_clients: int, seconds: float) -> dict[str, Any]:
    """Let many clients ask for so long; check every answer."""
    expected = {path: server.ask(path)[1] for path in files}
    statuses: Counter[str] = Counter()
    by_client: Counter[int] = Counter()
    lock, before = threading.Lock(), server.megabytes
    begun = time.perf_counter()
    end = begun + seconds
    most_by_part = [0.0] * 8

    def client(number: int) -> None:
        choose = random.Random(number)
        while time.perf_counter() < end:
            path = choose.choice(files)
            try:
                status, text, retry = server.ask(path, number)
            except OSError as error:
                status, text, retry = 0, str(error), 0.0
            if status == 200:
                kind = "right" if text == expected[path] else "other text"
            elif status in (429, 503) and retry > 0:
                kind = "refused clearly"
                time.sleep(choose.uniform(0.2, 1.0))  # sooner than it is told to, so that there is a load
            else:
                kind = f"failed: {status} {text}"
            with lock:
                statuses[kind] += 1
                by_client[number] += kind == "right"

    threads = [threading.Thread(target=client, args=(number,)) for number in range(n_clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        part = min(7, int(8 * (time.perf_counter() - begun) / seconds))
        most_by_part[part] = max(most_by_part[part], server.megabytes)
        time.sleep(min(2.0, seconds / 20))
    return {
        "clients": n_clients,
        "seconds": seconds,
        "answers": dict(statuses),
        "answers_per_client": [min(by_client.values(), default=0), max(by_client.values(), default=0)],
        "megabytes": {
            "before": round(before),
            "most in each eighth of the time": [round(most) for most in most_by_part],
        },
        "recordings_left": server.figures()['whisper_at_recordings{state="open"}'],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="nano.en")
    parser.add_argument("--data", type=Path, default=ROOT / "sample", help="folder of recordings")
    parser.add_argument("--files", type=int, default=16, help="recordings of it that are asked for in the first part")
    parser.add_argument("--clients", type=int, default=8, help="clients in the first part")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--crowd", type=int, default=50, help="clients in the second part; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long they ask")
    parser.add_argument("--compute_type", default="float32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="where results are written")
    args = parser.parse_args()
    files = sorted(path for path in args.data.iterdir() if path.suffix in SUFFIXES)
    if not files:
        parser.error(f"--data: {args.data} has no recordings")
    files = (files * args.files)[: args.files]
    arguments = ["--model", args.model, "--batch_size", str(args.batch_size), "--compute_type", args.compute_type]
    arguments += ["--threads", str(args.threads)] if args.threads else []
    results: dict[str, Any] = {"model": args.model, "batch_size": args.batch_size, "machine": machine_info()}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which stops the server, too
    server = Server(arguments, max(args.clients, args.crowd))
    try:
        results["at_once"] = at_once(server, files, args.clients)
        print(json.dumps(results["at_once"], indent=1), flush=True)
        if args.crowd:
            results["under_load"] = under_load(server, files, args.crowd, args.seconds)
            print(json.dumps(results["under_load"], indent=1), flush=True)
    finally:
        server.stop()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
