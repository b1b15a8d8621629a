"""What a realtime client has sent ahead: in order, in bounded memory and on a bounded disk."""

from __future__ import annotations

import asyncio

import pytest

from whisper_at.serve import backlog
from whisper_at.serve.backlog import Backlog


@pytest.fixture
def files(monkeypatch):
    """Files that were made."""
    made, real = [], backlog.tempfile.SpooledTemporaryFile
    monkeypatch.setattr(backlog.tempfile, "SpooledTemporaryFile", lambda *args: made.append(real(*args)) or made[-1])
    return made


def test_messages_come_out_as_they_went_in_whatever_their_turns(files, monkeypatch):
    monkeypatch.setattr(backlog, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(backlog, "FILE_BYTES", 5000)
    messages = [bytes([i % 256]) * (i * 37 % 700) for i in range(200)]

    async def put_and_get():
        found = []
        with Backlog(1e9) as queue:
            for i, message in enumerate(messages):
                await queue.put(message)
                if i % 3 == 0:
                    found.append(await queue.get())
            held = [file for file in files if not file.closed]
            assert len(files) > len(held) > 5
            assert all(file._rolled for file in held[:-1])  # on disk
            while queue:
                found.append(await queue.get())
            assert all(file.closed for file in files)
        return found

    assert asyncio.run(put_and_get()) == messages


def test_what_is_left_is_deleted(files):
    async def leave():
        with Backlog(1e9) as queue:
            await queue.put(b"left")

    asyncio.run(leave())
    assert [file.closed for file in files] == [True]


def test_who_puts_waits_for_room_and_who_gets_for_a_message():
    async def put_and_get():
        with Backlog(max_bytes=10) as queue:
            waiting = asyncio.create_task(queue.get())
            await asyncio.sleep(0)
            assert not waiting.done()
            await queue.put(b"first")
            assert await waiting == b"first"
            await queue.put(b"0123456789")
            blocked = asyncio.create_task(queue.put(b"next"))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not blocked.done()
            assert len(queue) == 1
            assert await queue.get() == b"0123456789"
            await blocked
            assert await queue.get() == b"next"

    asyncio.run(put_and_get())
