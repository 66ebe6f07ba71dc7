"""Judges against a fake endpoint that fails, stalls and talks rubbish, and the reading of what they say."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gar.bench import judges
from gar.bench.judges import (
    Cache,
    Endpoint,
    Fixed,
    Question,
    Reply,
    Stopped,
    ask_all,
    read_choice,
    read_object,
    read_two_numbers,
    side_by_side,
)

pytest.importorskip("openai", reason="judges ask through the package openai")

OK, STALL, HANG_UP, NOT_JSON, NO_CHOICES = "ok", "stall", "hang up", "not json", "no choices"
Plan = Callable[[str, int], Any]


class FakeEndpoint:
    """Answers item "item 7" with "reply to item 7" in its own time, and as the plan says.

    The plan gets a question and how often it was asked before; it gives OK, STALL, HANG_UP, NOT_JSON, NO_CHOICES, a
    status, or a tuple of status, headers and body. `asked` and `answered` count by question; `room` is how many replies
    may still be given before everything stalls.
    """

    def __init__(self, plan: Plan = lambda question, before: OK, delay_s: float = 0.0):
        self.plan, self.delay_s = plan, delay_s
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.most_at_once = self._at_once = 0
        self.room = 10**9
        self.lock = threading.Lock()
        self.gave_all = threading.Event()
        self.closing = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def allow(self, replies: int) -> None:
        with self.lock:
            self.room = replies
            self.gave_all.clear()
            if not replies:
                self.gave_all.set()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        question = body["messages"][0]["content"][-1]["text"]
        with self.lock:
            act = self.plan(question, self.asked[question])
            self.asked[question] += 1
            self.bodies.append(body | {"authorization": handler.headers["Authorization"]})
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            time.sleep(self.delay_s)
            self.act(handler, question, act)
        except OSError:
            pass  # whoever asked is dead
        finally:
            with self.lock:
                self._at_once -= 1

    def act(self, handler: BaseHTTPRequestHandler, question: str, act: Any) -> None:
        status, headers, said = 200, {}, b""
        if act == OK:
            with self.lock:
                self.room -= 1
                act = OK if self.room >= 0 else STALL
        if act == STALL:
            self.closing.wait(30)
        if act in (STALL, HANG_UP):
            return
        if act == OK:
            text = f"reply to {question}"
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            said = json.dumps({"choices": [choice], "usage": {"total_tokens": 10}}).encode()
        elif act == NOT_JSON:
            said = b"<html>gateway</html>"
        elif act == NO_CHOICES:
            said = b'{"choices": []}'
        elif isinstance(act, int):
            status, said = act, json.dumps({"error": {"message": f"no {act}", "code": None}}).encode()
        else:
            status, headers, said = act
        handler.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(said)} | headers).items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(said)
        if act == OK:
            with self.lock:
                self.answered[question] += 1
                if self.room <= 0:
                    self.gave_all.set()


@pytest.fixture
def fake_endpoint(monkeypatch) -> Iterator[Callable[..., FakeEndpoint]]:
    """Starts fake endpoints; judges in this process lose no time between tries."""
    monkeypatch.setattr(judges, "FIRST_WAIT_S", 0.001)
    started = []

    def start(*arguments: Any, **options: Any) -> FakeEndpoint:
        started.append(FakeEndpoint(*arguments, **options))
        return started[-1]

    yield start
    for fake in started:
        fake.close()


def plan(*acts: Any) -> Plan:
    """One act after the other for each question, the last one for ever."""
    return lambda question, before: acts[min(before, len(acts) - 1)]


def picture(color: str = "red", size: tuple[int, int] = (4, 3)) -> Image.Image:
    return Image.new("RGB", size, color)


# One question


def test_an_endpoint_gets_the_pictures_before_the_text_and_the_sampling(fake_endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    fake = fake_endpoint()
    judge = Endpoint(fake.url, "some-model", sampling={"temperature": 0.5, "top_k": 3})
    assert judge.ask("Is it red?", [picture(), picture("blue")]) == Reply("reply to Is it red?", tokens=10)
    (body,) = fake.bodies
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert (body["model"], body["temperature"], body["top_k"]) == ("some-model", 0.5, 3)
    assert body["authorization"] == "Bearer secret"
    assert (judge.requests, judge.tokens) == (1, 10)


def test_without_a_key_in_the_environment_none_is_sent(fake_endpoint, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    fake = fake_endpoint()
    Endpoint(fake.url, "m").ask("?")
    assert fake.bodies[0]["authorization"] == "Bearer none"


@pytest.mark.parametrize("failure", [408, 409, 429, 500, 503, HANG_UP, NOT_JSON, NO_CHOICES])
def test_a_failure_that_may_pass_is_asked_again(fake_endpoint, failure):
    fake = fake_endpoint(plan(failure, failure, OK))
    assert Endpoint(fake.url, "m").ask("item").text == "reply to item"
    assert fake.asked["item"] == 3


def test_a_stall_times_out_and_is_asked_again(fake_endpoint):
    fake = fake_endpoint(plan(STALL, OK))
    assert Endpoint(fake.url, "m", timeout_s=0.3).ask("item").text == "reply to item"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (503, "status 503"),
        (NOT_JSON, "no chat completion: '<html>gateway</html>'"),
        (NO_CHOICES, "no chat completion"),
    ],
)
def test_a_failure_that_does_not_pass_is_an_error_with_its_reason(fake_endpoint, failure, reason):
    fake = fake_endpoint(plan(failure))
    reply = Endpoint(fake.url, "m", tries=3).ask("item")
    assert reply.text is None and reply.error is not None
    assert reply.error.startswith("no reply in 3 tries") and reason in reply.error and reply.passing
    assert fake.asked["item"] == 3


def test_a_lost_connection_is_an_error_where_there_was_one_before(fake_endpoint):
    fake = fake_endpoint(lambda question, before: {"good": OK, "bad": HANG_UP}[question])
    judge = Endpoint(fake.url, "m", tries=2)
    assert judge.ask("good").text
    assert str(judge.ask("bad").error).startswith("no reply in 2 tries, the last: Connection error: ")


def test_an_endpoint_that_is_not_there_stops_the_judge(fake_endpoint):
    fake = fake_endpoint()
    fake.close()
    with pytest.raises(Stopped, match="no connection in 2 tries, the last: Connection error: .*refused"):
        Endpoint(fake.url, "m", tries=2).ask("item")


def test_a_question_that_is_refused_is_an_error_at_once(fake_endpoint):
    fake = fake_endpoint(plan(400))
    reply = Endpoint(fake.url, "m").ask("item")
    assert "no 400" in (reply.error or "") and not reply.passing
    assert fake.asked["item"] == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_refuses_everything_stops_the_judge(fake_endpoint, status):
    with pytest.raises(Stopped, match=f"refuses every question.*no {status}"):
        Endpoint(fake_endpoint(plan(status)).url, "m").ask("item")


def test_an_account_without_money_stops_the_judge(fake_endpoint):
    broke = (429, {}, b'{"error": {"message": "You have no credit", "code": "insufficient_quota"}}')
    with pytest.raises(Stopped, match="You have no credit"):
        Endpoint(fake_endpoint(plan(broke)).url, "m").ask("item")


def test_a_reply_without_words_is_empty_and_a_refusal_is_its_words(fake_endpoint):
    def saying(**message: Any) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps({"choices": [{"message": message}]}).encode()

    fake = fake_endpoint(lambda question, before: saying(content=None, refusal={"a": None, "b": "I cannot"}[question]))
    judge = Endpoint(fake.url, "m")
    assert (judge.ask("a"), judge.ask("b")) == (Reply(""), Reply("I cannot"))


@pytest.mark.parametrize(
    "after", [lambda: "1", lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)]
)
def test_the_wait_that_an_endpoint_asks_for_is_kept(fake_endpoint, after):
    fake = fake_endpoint(lambda question, before: OK if before else (429, {"Retry-After": after()}, b"{}"))
    assert Endpoint(fake.url, "m").ask("item").text
    assert 0.9 <= fake.times[1] - fake.times[0] < 10


def test_too_long_a_wait_stops_the_judge(fake_endpoint):
    fake = fake_endpoint(plan((429, {"Retry-After": "86400"}, b"{}")))
    with pytest.raises(Stopped, match="come back in 86400 seconds"):
        Endpoint(fake.url, "m").ask("item")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "the endpoint is 'localhost:8000'"),
        ({"base_url": "http://localhost:80OO/v1"}, "the endpoint is 'http://localhost:80OO/v1'"),
        ({"base_url": "http://"}, "the endpoint is 'http://'"),
        ({"tries": 0}, "tries is 0"),
        ({"rate_limit": 0}, "the rate limit is 0"),
    ],
)
def test_what_makes_no_endpoint_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Endpoint(**{"base_url": "http://localhost", "model": "m"} | options)


def test_a_key_of_several_lines_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sec\nret")
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        Endpoint("http://localhost", "m")
    assert "sec" not in str(caught.value)


def test_halves_of_letters_neither_stop_a_judge_nor_spoil_its_cache(fake_endpoint, tmp_path):
    body = rb'{"choices": [{"message": {"content": "yes \ud83d"}}]}'
    judge = Endpoint(fake_endpoint(plan((200, {}, body))).url, "m", cache=tmp_path / "replies.sqlite")
    assert [judge.ask("is it \ud83d").text for _ in range(2)] == ["yes ?"] * 2


def test_whoever_is_interrupted_waits_for_no_reply():
    over = threading.Event()

    def interrupted() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(side_by_side(lambda _: over.wait(60), interrupted(), threads=2))
    assert time.monotonic() - started < 10
    over.set()


# Limits


def test_requests_keep_to_the_rate(fake_endpoint):
    fake = fake_endpoint()
    list(ask_all(Endpoint(fake.url, "m", rate_limit=1200), [Question(f"item {k}") for k in range(8)]))
    assert max(fake.times) - min(fake.times) >= 7 * 0.05 - 0.02


def test_at_the_limit_of_requests_all_replies_are_given_and_kept(fake_endpoint, tmp_path):
    questions = [Question(f"item {k}") for k in range(20)]
    fake = fake_endpoint(delay_s=0.01)
    got: dict[int, Reply] = {}
    with pytest.raises(Stopped, match="7 requests reach the limit of 7"):
        got.update(ask_all(Endpoint(fake.url, "m", cache=tmp_path / "cache", request_limit=7), questions, threads=3))
    got = collected(Endpoint(fake.url, "m", cache=tmp_path / "cache", request_limit=7), questions)
    assert sum(fake.asked.values()) == 14 == len(got)
    assert sum(reply.cached for reply in got.values()) == 7
    collected(Endpoint(fake.url, "m", cache=tmp_path / "cache"), questions)
    assert {*fake.asked.values()} == {1}


def collected(judge: Endpoint, questions: list[Question]) -> dict[int, Reply]:
    got = {}
    try:
        for index, reply in ask_all(judge, questions, threads=3):
            got[index] = reply
    except Stopped:
        pass
    return got


def test_tries_count_as_requests(fake_endpoint):
    judge = Endpoint(fake_endpoint(plan(500)).url, "m", request_limit=3)
    with pytest.raises(Stopped, match="3 requests reach the limit of 3"):
        judge.ask("item")


def test_the_limit_of_tokens_stops_the_judge(fake_endpoint):
    judge = Endpoint(fake_endpoint().url, "m", token_limit=25)
    for k in range(3):
        assert judge.ask(f"item {k}").text
    with pytest.raises(Stopped, match="30 tokens reach the limit of 25"):
        judge.ask("item 3")


# Many questions


def test_replies_to_many_come_with_the_index_of_their_question(fake_endpoint):
    fake = fake_endpoint(delay_s=0.05)
    questions = (Question(f"item {k}") for k in range(20))
    got = dict(ask_all(Endpoint(fake.url, "m"), questions, threads=4))
    assert got == {k: Reply(f"reply to item {k}", tokens=10) for k in range(20)}
    assert 2 <= fake.most_at_once <= 4


def test_questions_are_taken_as_threads_become_free():
    taken = []

    def questions() -> Iterator[Question]:
        for k in range(50):
            taken.append(k)
            yield Question(f"item {k}")

    replies = ask_all(Fixed("yes"), questions(), threads=3)
    next(replies)
    assert len(taken) <= 6


def test_a_fixed_judge_says_what_it_was_told_to():
    judge = Fixed({"a": "yes"})
    assert judge.ask("a") == Reply("yes")
    assert judge.ask("b", repeat=2) == Reply(None, "there is no fixed reply to this question")
    assert judge.asked == [Question("a"), Question("b", repeat=2)]
    assert Fixed("no").ask("anything").text == "no"


# The cache


def test_everything_that_matters_is_asked_anew_and_nothing_else(fake_endpoint, tmp_path):
    fake, other = fake_endpoint(), fake_endpoint()
    cache = tmp_path / "deep" / "cache"
    cache.parent.mkdir()

    def ask(url: str = fake.url, model: str = "m", question: str = "q", repeat: int = 0, image: Any = None, **options):
        return Endpoint(url, model, cache=cache, **options).ask(question, [image or picture()], repeat)

    first = ask()
    again = ask()
    assert not first.cached and again == Reply(first.text, cached=True, tokens=10)
    assert ask(url=fake.url + "/", timeout_s=5, tries=2, rate_limit=100).cached
    assert ask(image=picture().convert("P").convert("RGB")).cached
    changes: list[dict[str, Any]] = [
        {"url": other.url},
        {"model": "n"},
        {"question": "r"},
        {"repeat": 1},
        {"image": picture("blue")},
        {"image": picture(size=(3, 4))},
        {"sampling": {"temperature": 1}},
    ]
    for change in changes:
        assert not ask(**change).cached and ask(**change).cached, change


def test_an_error_is_not_kept(fake_endpoint, tmp_path):
    fake = fake_endpoint(plan(500, OK))
    judge = Endpoint(fake.url, "m", cache=tmp_path / "cache", tries=1)
    assert judge.ask("item").error and judge.ask("item").text and judge.ask("item").cached


def test_the_same_question_at_the_same_moment_is_asked_once(fake_endpoint, tmp_path):
    fake = fake_endpoint(delay_s=0.1)
    replies = dict(ask_all(Endpoint(fake.url, "m", cache=tmp_path / "cache"), [Question("item")] * 8))
    assert fake.asked == {"item": 1}
    assert sorted(reply.cached for reply in replies.values()) == [False] + [True] * 7


def test_what_is_no_cache_is_named(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one" * 99)
    with pytest.raises(ValueError, match="text is no cache of replies"):
        Cache(tmp_path / "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        Cache(tmp_path / "folder")


# Killed, and side by side

ITEMS, THREADS = 30, 2


def judge_all(url: str, cache: Path, out: Path) -> None:
    """What is killed: judge all items, write a line for each, in their order, in one step at the end."""
    judges.FIRST_WAIT_S = 0.01
    judge = Endpoint(url, "m", cache=cache, timeout_s=3.0)
    questions = [Question(f"item {k}", [picture(size=(k + 1, 1))]) for k in range(ITEMS)]
    lines = [""] * ITEMS
    for index, reply in ask_all(judge, questions, THREADS):
        verdict: dict[str, Any] = {"item": index, "reply": reply.text, "error": reply.error}
        try:
            verdict["value"] = read_choice(reply.text or "", [f"reply to item {k}" for k in range(25)])
        except ValueError as error:
            verdict["unscored"] = str(error)
        lines[index] = json.dumps(verdict) + "\n"
    unfinished = out.with_suffix(".tmp")
    unfinished.write_text("".join(lines))
    unfinished.replace(out)


def faults(seed: int) -> Plan:
    """A third of the requests fail, each in its own way; nothing fails more than four times in a row."""

    def act(question: str, before: int) -> Any:
        rng = random.Random(f"{seed}/{question}/{before}")
        failures = [429, 500, 503, STALL, NOT_JSON, NO_CHOICES, HANG_UP, (429, {"Retry-After": "0"}, b"rubbish")]
        return rng.choice(failures) if before % 5 != 4 and rng.random() < 0.35 else OK

    return act


def kept(cache: Path) -> set[str]:
    """The questions whose replies are on disk."""
    if not cache.exists():
        return set()
    with sqlite3.connect(cache) as file:
        tables = file.execute("SELECT name FROM sqlite_master").fetchall()
        return {question for (question,) in file.execute("SELECT question FROM replies")} if tables else set()


@pytest.mark.slow
def test_killed_twenty_times_the_file_is_the_same_and_nothing_kept_is_asked_again(fake_endpoint, processes, tmp_path):
    rng = random.Random(0)
    whole = fake_endpoint(faults(1))
    judge_all(whole.url, tmp_path / "whole.cache", tmp_path / "whole.jsonl")

    fake, cache, out = fake_endpoint(faults(2), delay_s=0.01), tmp_path / "cache", tmp_path / "out.jsonl"
    before: dict[str, int] = {}
    for _ in range(20):
        # Each life gets 0 to 2 replies, then stalls; death comes at any moment around the last one.
        fake.allow(rng.randint(0, 2))
        process = processes.Process(target=judge_all, args=(fake.url, cache, out))
        process.start()
        assert fake.gave_all.wait(120)
        time.sleep(rng.choice([0, 0.002, 0.01, 0.05, 0.3]) * rng.random())
        assert process.is_alive() and not out.exists()
        process.kill()
        process.join()
        assert {question: fake.asked[question] for question in before} == before
        before = {question: fake.asked[question] for question in kept(cache)}
    fake.allow(10**9)
    process = processes.Process(target=judge_all, args=(fake.url, cache, out))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert {question: fake.asked[question] for question in before} == before
    assert len(before) > 5 and kept(cache) == {f"item {k}" for k in range(ITEMS)}
    # Answered twice at most by what was on its way at a death.
    assert sum(fake.answered.values()) <= ITEMS + 20 * THREADS


@pytest.mark.slow
def test_two_processes_share_the_work_and_ask_nothing_twice(fake_endpoint, processes, tmp_path):
    fake = fake_endpoint(delay_s=0.05)
    outs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    both = [processes.Process(target=judge_all, args=(fake.url, tmp_path / "cache", out)) for out in outs]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert fake.asked == {f"item {k}": 1 for k in range(ITEMS)}
    assert outs[0].read_bytes() == outs[1].read_bytes()


# Reading


@pytest.mark.parametrize(
    "text", ['{"same": true}', ' {"same": true}\n', '```json\n{"same": true}\n```', '```\n{"same":\n true}\n```\n']
)
def test_one_object_is_read(text):
    assert read_object(text) == {"same": True}


@pytest.mark.parametrize(
    "text",
    ["", "true", "[1]", 'Here: {"a": 1}', '{"a": 1} {"a": 1}', '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1', "{'a': 1}"],
)
def test_anything_but_one_object_is_refused(text):
    with pytest.raises(ValueError, match="expected one JSON object, got"):
        read_object(text)


@pytest.mark.parametrize(
    "text", ["B", "b", " B\n", "B.", "(b)", "B)", "B:", "yes, it is", "Yes, it is.", "B. yes, it is.", "(B) yes, it is"]
)
def test_a_choice_is_read_by_letter_or_text_or_both(text):
    assert read_choice(text, ["no", "yes, it is."]) == 1


@pytest.mark.parametrize(
    "text", ["", "C", "A B", "A or B", "A. yes, it is.", "yes", "I think B", "**B**", "Answer: B", "byes, it is", "(B"]
)
def test_anything_but_a_choice_is_refused(text):
    with pytest.raises(ValueError, match="expected one letter from A to B, got"):
        read_choice(text, ["no", "yes, it is."])


def test_a_choice_that_fits_two_is_refused():
    assert read_choice("B", ["A", "B"]) == 1
    with pytest.raises(ValueError, match="expected one letter"):
        read_choice("B", ["B", "A"])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("7 4", (7, 4)), ("7 4\nwhy", (7, 4)), ("\n 8.5,9 \nwhy 3 4", (8.5, 9)), ("7, 4", (7, 4)), ("10  1", (10, 1))],
)
def test_two_numbers_are_read_from_the_first_line(text, numbers):
    assert read_two_numbers(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "7", "7 4 1", "Scores: 7 4", "**7 4**", "11 4", "7 0", "7/10 4/10", "-7 4", "7 .5"]
)
def test_anything_but_two_numbers_is_refused(text):
    with pytest.raises(ValueError, match="expected two numbers from 1 to 10 on the first line, got"):
        read_two_numbers(text)
