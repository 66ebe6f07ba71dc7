"""Judges: models that say whether an answer is right, and the reading of what they say.

A judge is anything with `ask`. `Endpoint` asks a server and keeps every reply on disk, so that none is paid for twice;
`Fixed` says what it was told to, for tests. Knows questions and pictures; knows no benchmark and no protocol.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from PIL.Image import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track

T = TypeVar("T")
R = TypeVar("R")
SAMPLING = {"temperature": 0, "max_tokens": 1024}
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
MEANT_FOR_ALL = (401, 403, 404)  # not this question is refused, but every one: key, rights, address or model
PASSING = (408, 409, 425, 429)


@dataclass(frozen=True)
class Reply:
    """What a judge says: `text`, or the `error` that kept it from saying anything; the other one is None.

    passing: the error is one that may pass, so the question is worth asking again later.
    cached: it was said in an earlier run, or to the same question before.
    tokens: of question and reply together, as the endpoint counts them; 0 where it does not.
    """

    text: str | None
    error: str | None = None
    passing: bool = False
    cached: bool = False
    tokens: int = 0

    def __post_init__(self):
        assert (self.text is None) != (self.error is None), self


class Question(NamedTuple):
    """What a judge is asked. The same question with another `repeat` is asked anew, not looked up."""

    text: str
    pictures: Sequence[Image] = ()
    repeat: int = 0


class Judge(Protocol):
    """Anything that can be asked, from several threads at once."""

    name: str

    def ask(self, question: str, pictures: Sequence[Image] = (), repeat: int = 0) -> Reply: ...


class Stopped(ValueError):
    """The judge answers nothing more: a limit is reached, or the endpoint is not there or refuses whatever it is asked.

    What was said until here is in the cache; the same run, started again, goes on from there.
    """


class NoReply(ValueError):
    """A question had no reply this time, and may have one later."""


def ask_all(judge: Judge, questions: Iterable[Question], threads: int = 8) -> Iterator[tuple[int, Reply]]:
    """Ask many questions, `threads` at a time, with a progress bar on a terminal.

    Args:
        questions: taken one by one as threads become free, so their pictures need not all be in memory.

    Yields:
        The question's index, from 0, and the reply to it; in the order of the replies.

    Raises:
        Stopped: once everything that was still being answered is answered and yielded.
    """
    total = len(questions) if isinstance(questions, Sized) else None
    replies, console = side_by_side(lambda question: judge.ask(*question), questions, threads), Console(stderr=True)
    yield from track(replies, escape(f"asking {judge.name}"), total, console=console, disable=not sys.stderr.isatty())


def side_by_side(ask: Callable[[T], R], things: Iterable[T], threads: int = 8) -> Iterator[tuple[int, R]]:
    """What `ask` gives for each thing, `threads` at a time. See `ask_all`. Whoever is interrupted waits for none."""
    waiting = enumerate(things)
    asked: dict[Future[R], int] = {}
    stopped: BaseException | None = None
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for index, thing in islice(waiting, 0 if stopped else threads - len(asked)):
                asked[pool.submit(ask, thing)] = index
            if not asked:
                break
            for future in wait(asked, return_when=FIRST_COMPLETED).done:
                index, error = asked.pop(future), future.exception()
                if isinstance(error, Stopped):
                    stopped = error
                else:
                    yield index, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if stopped:
        raise stopped


# Judges


class Fixed:
    """A judge of fixed replies: to everything the same one, or to each question its own. `asked` lists them."""

    def __init__(self, replies: str | Mapping[str, str]):
        self.name = "fixed replies"
        self.asked: list[Question] = []
        self._replies = replies

    def ask(self, question: str, pictures: Sequence[Image] = (), repeat: int = 0) -> Reply:
        self.asked.append(Question(question, pictures, repeat))
        text = self._replies if isinstance(self._replies, str) else self._replies.get(question)
        return Reply(text) if text is not None else Reply(None, "there is no fixed reply to this question")


class Endpoint:
    """A model behind any OpenAI-compatible endpoint. Pictures are sent before the question's text, as PNG.

    Asks again, ever more slowly, after a failure that may pass: status 408, 409, 425, 429 and 5xx, a time-out, a lost
    connection, a body that is no chat completion. A wait that the endpoint asks for (Retry-After) is kept by all
    threads. The key is the environment's OPENAI_API_KEY, or "none".

    Args:
        base_url: up to and with its version, as in "http://localhost:8000/v1".
        cache: a file to keep replies in; it may be shared by judges, and by processes on one machine. See `Cache`.
        sampling: fields of each request beside model and messages; by default `SAMPLING`.
        timeout_s: seconds without a byte from the endpoint until a try has failed.
        tries: of one question.
        rate_limit: requests a minute, evenly spaced.
        request_limit: requests of this object, tries included; the cache's replies cost none.
        token_limit: tokens of this object's replies. Known only after each, so requests under way may pass it.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        cache: str | Path | None = None,
        sampling: Mapping[str, Any] = SAMPLING,
        timeout_s: float = 120.0,
        tries: int = 8,
        rate_limit: float | None = None,
        request_limit: int | None = None,
        token_limit: int | None = None,
    ):
        from openai import OpenAI

        if not _is_address(base_url):
            raise ValueError(f"the endpoint is {base_url!r}, expected an address such as http://localhost:8000/v1")
        if tries < 1:
            raise ValueError(f"tries is {tries}, expected at least 1")
        if rate_limit is not None and rate_limit <= 0:
            raise ValueError(f"the rate limit is {rate_limit}, expected more than 0 requests a minute")
        self.base_url, self.model = base_url.rstrip("/"), model
        self.name = f"{model} at {self.base_url}"
        self.requests = self.tokens = 0
        self._reached = False
        self._sampling, self._tries = dict(sampling), tries
        self._spacing_s = 60 / rate_limit if rate_limit else 0.0
        self._request_limit, self._token_limit = request_limit, token_limit
        self._cache = Cache(cache) if cache is not None else None
        self._lock = threading.Lock()
        self._next_turn = time.monotonic()
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        if not (key.isascii() and key.isprintable()):
            raise ValueError("OPENAI_API_KEY holds a character that no key has: write it anew")
        self._client = OpenAI(base_url=self.base_url, api_key=key, timeout=timeout_s, max_retries=0)

    def ask(self, question: str, pictures: Sequence[Image] = (), repeat: int = 0) -> Reply:
        """Ask, or look up what was said before.

        Args:
            repeat: the same question with another number is asked anew.

        Raises:
            Stopped: a limit is reached; the endpoint is not there, refuses key or model, or asks for too long a wait.
        """
        question = _writable(question)
        pictures = [picture.convert("RGB") for picture in pictures]
        if self._cache is None:
            return self._ask(question, pictures)
        seen = [(picture.size, hashlib.sha256(picture.tobytes()).hexdigest()) for picture in pictures]
        matters = [self.base_url, self.model, self._sampling, question, seen, repeat]
        key = hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()
        with self._cache.claimed(key):
            reply = self._cache.get(key)
            if reply is None:
                reply = self._ask(question, pictures)
                if reply.text is not None:
                    self._cache.put(key, reply, model=self.name, question=question)
        return reply

    def _ask(self, question: str, pictures: Sequence[Image]) -> Reply:
        import openai

        content = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
        message: Any = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        create = self._client.chat.completions.with_raw_response.create
        failure = ""
        for attempt in range(self._tries):
            self._take_turn()
            asked_wait_s = None
            try:
                response = create(model=self.model, messages=[message], extra_body=self._sampling)
            except openai.APIStatusError as error:
                self._reached = True
                if error.status_code in MEANT_FOR_ALL or error.code == "insufficient_quota":
                    raise Stopped(f"{self.name} refuses every question: {error.message}") from error
                if error.status_code not in PASSING and error.status_code < 500:
                    return Reply(None, f"refused: {error.message}")
                failure = f"status {error.status_code}"
                asked_wait_s = _retry_after_s(error.response.headers.get("retry-after"))
            except openai.APITimeoutError as error:
                self._reached = True
                failure = error.message
            except openai.APIConnectionError as error:
                failure = f"{error.message.rstrip('.')}: {error.__cause__ or 'no reason given'}"
            else:
                try:
                    return self._read(response)
                except ValueError as error:
                    failure = str(error)
            if attempt + 1 < self._tries:
                self._pause(attempt, asked_wait_s)
        if not self._reached:  # a wrong address, which would keep every question waiting as long
            raise Stopped(f"{self.name}: no connection in {self._tries} tries, the last: {failure}")
        return Reply(None, f"no reply in {self._tries} tries, the last: {failure}", passing=True)

    def _take_turn(self) -> None:
        with self._lock:
            limits = ("requests", self.requests, self._request_limit), ("tokens", self.tokens, self._token_limit)
            for what, used, limit in limits:
                if limit is not None and used >= limit:
                    raise Stopped(f"{self.name}: {used} {what} reach the limit of {limit}; run again to go on")
            self.requests += 1
            turn = max(self._next_turn, time.monotonic())
            self._next_turn = turn + self._spacing_s
        time.sleep(max(turn - time.monotonic(), 0))

    def _pause(self, attempt: int, asked_wait_s: float | None) -> None:
        if asked_wait_s is None:
            # Unseeded: two processes that failed together are not to come back together.
            time.sleep(random.uniform(0.5, 1) * min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S))
        elif asked_wait_s > 10 * LONGEST_WAIT_S:
            raise Stopped(f"{self.name} asks to come back in {asked_wait_s:.0f} seconds; run again then to go on")
        else:
            with self._lock:
                self._next_turn = max(self._next_turn, time.monotonic() + asked_wait_s)

    def _read(self, response: Any) -> Reply:
        body = response.http_response.text
        self._reached = True
        try:
            completion = json.loads(body)
            message = completion["choices"][0]["message"]
            text = message.get("content") or message.get("refusal") or ""
            tokens = int((completion.get("usage") or {}).get("total_tokens") or 0)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no chat completion: {body[:80]!r}") from error
        with self._lock:
            self.tokens += tokens
        return Reply(_writable(str(text)), tokens=tokens)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port != 0  # which raises ValueError where it is no number
    except ValueError:
        return False
    return port and parts.scheme in ("http", "https") and bool(parts.hostname) and re.search(r"\s", url) is None


def _writable(text: str) -> str:
    """A text without the halves of letters (lone surrogates) that JSON can hold and no file or request."""
    return text.encode(errors="replace").decode()


def _data_url(picture: Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _retry_after_s(header: str | None) -> float | None:
    """Seconds until the time that a Retry-After header names, in seconds or as a date; None without a readable one."""
    if header and header.isdecimal():
        return float(header)
    try:
        return max(parsedate_to_datetime(header or "").timestamp() - time.time(), 0.0)
    except ValueError:
        return None


class Cache:
    """Replies on disk, by what was asked.

    A reply is kept, durably, before anyone sees it, and a question with a kept reply is never asked again: not by
    another thread, not by another process on this machine, not after any of them was killed at any moment. While one
    asks, others with the same question wait for its reply. The one thing that is lost with a killed process is a reply
    that was still on its way: that question is asked again.

    Makes the file and a folder FILE.locks beside it; both are to lie on a local disk. Works on Linux and macOS.

    Raises:
        ValueError: the file is something else.
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._locks = Path(f"{path}.locks")
        self._locks.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        with self.claimed("start"):  # sqlite does not let two processes turn on its log at the same moment
            try:
                self._file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            except sqlite3.Error as error:
                raise OSError(f"{path}: {error}") from error
            self._execute("PRAGMA journal_mode = WAL")
            self._execute(
                "CREATE TABLE IF NOT EXISTS replies"
                " (key TEXT PRIMARY KEY, model TEXT, question TEXT, text TEXT NOT NULL, tokens INTEGER NOT NULL)"
            )

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """The right to ask a question, which one thread of one process has at a time, and which ends with it."""
        import fcntl  # there is none on Windows, where the rest of this file works

        # A file for each question would leave thousands; some questions share one, and at times wait for each other.
        with open(self._locks / key[:2], "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def get(self, key: str) -> Reply | None:
        rows = self._execute("SELECT text, tokens FROM replies WHERE key = ?", key)
        return Reply(rows[0][0], cached=True, tokens=rows[0][1]) if rows else None

    def put(self, key: str, reply: Reply, *, model: str, question: str) -> None:
        """Keep a reply. Model and question are for people who look into the file."""
        self._execute("INSERT INTO replies VALUES (?, ?, ?, ?, ?)", key, model, question, reply.text, reply.tokens)

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        try:
            with self._lock:
                return self._file.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            raise OSError(f"{self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self._path} is no cache of replies: {error}") from error


# Reading what a judge said. What is not exactly of the form asked for is refused: no verdict is better than a guess.

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TWO_NUMBERS = re.compile(rf"({_NUMBER})(?:\s*,\s*|\s+)({_NUMBER})")


def read_object(text: str) -> dict[str, Any]:
    """The one JSON object that a reply consists of, bare or in one Markdown fence.

    Raises:
        ValueError: the reply is anything else, or has a name twice.
    """
    fenced = _FENCE.fullmatch(text.strip())
    try:
        found = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once, parse_constant=_refuse)
    except ValueError as error:
        raise ValueError(f"expected one JSON object, got {_start(text)} ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected one JSON object, got {_start(text)}")
    return found


def read_choice(text: str, choices: Sequence[str]) -> int:
    """The index, from 0, of the choice that a reply names: by its letter ("B", "b.", "(B)"), its text, or both.

    Upper or lower case, and a point at the end, mean nothing.

    Args:
        choices: texts without letters; the first is A.

    Raises:
        ValueError: the reply is anything else, or fits several choices.
    """
    said = text.strip().rstrip(".")
    fits = []
    for k, choice in enumerate(choices):
        letter, words = rf"(?:{LETTERS[k]}[.:)]?|\({LETTERS[k]}\))", re.escape(choice.strip().rstrip("."))
        if re.fullmatch(rf"{letter}|(?:{letter}\s+)?{words}", said, re.IGNORECASE):
            fits.append(k)
    if len(fits) != 1:
        raise ValueError(f"expected one letter from A to {LETTERS[len(choices) - 1]}, got {_start(text)}")
    return fits[0]


def read_two_numbers(text: str, low: float = 1, high: float = 10) -> tuple[float, float]:
    """The two numbers of a reply's first line, with a space or a comma between them; what follows explains them.

    Raises:
        ValueError: the first line is anything else, or a number lies outside `low` to `high`.
    """
    first = text.strip().partition("\n")[0].strip()
    match = _TWO_NUMBERS.fullmatch(first)
    if match:
        one, two = float(match[1]), float(match[2])
        if low <= one <= high and low <= two <= high:
            return one, two
    raise ValueError(f"expected two numbers from {low:g} to {high:g} on the first line, got {_start(first)}")


def _start(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len({*names}) < len(names):
        raise ValueError(f"a name stands twice in {names}")
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
