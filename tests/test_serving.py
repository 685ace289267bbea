"""The server: the protocols that clients know, what it refuses, and whose answers are whose."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gag import GAG
from gag.engine.asking import Ask
from gag.project.project import Project, load_project
from gag.routing.router import Route
from gag.serving.keys import new_key
from gag.serving.owner import Ticket
from tests.served import Served, serve
from tests.test_engine import QUESTIONS

METAL, GENERAL = QUESTIONS[0], "What is 3 plus 3?"


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[Served]:
    with serve(load_project(built, ("decoding.max_new_tokens=6",))) as client:
        yield client


@pytest.fixture(scope="module")
def asked(built: Path) -> dict[str, str]:
    """What `ask` answers."""
    gag = GAG.open(load_project(built, ("decoding.max_new_tokens=6",)))
    return {answer.question: answer.text for answer in gag.ask([*QUESTIONS, GENERAL])}


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0)


def events(reply: httpx.Response) -> list[dict]:
    lines = [line[6:] for line in reply.text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def refused(reply: httpx.Response, status: int, param: str | None = None) -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert param is None or error["param"] == param
    assert reply.headers["x-request-id"]
    return error["message"]


def test_an_answer_is_that_of_ask_and_says_where_it_came_from(served: Served, asked: dict[str, str]) -> None:
    for question in (*QUESTIONS, GENERAL):
        reply = served.chat(question)
        body, gag = reply.json(), reply.json()["gag"]
        assert body["choices"][0]["message"]["content"] == asked[question]
        domain = gag["route"]["domain"]
        assert body["model"] == f"gag/{domain}" and reply.headers["x-gag-route"] == domain
        assert gag["route"]["reason"] and set(gag["route"]["scores"]) == {"general", "metals", "plants"}
        assert gag["vectors"] == (0 if domain == "general" else 1) and gag["asked"] == question
        assert {"wait", "route", "read", "answer"} <= gag["seconds"].keys()
        usage = body["usage"]
        assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0


def test_openais_client_reads_all_three_protocols(client: openai.OpenAI, asked: dict[str, str]) -> None:
    turns = [{"role": "user", "content": METAL}]
    made = client.chat.completions.create(model="gag", messages=turns)  # pyright: ignore
    assert made.choices[0].message.content == asked[METAL] and made.choices[0].finish_reason in (
        "stop",
        "length",
    )
    stream = client.chat.completions.create(
        model="gag",
        messages=turns,
        stream=True,
        stream_options={"include_usage": True},  # pyright: ignore
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].model == made.model
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == asked[METAL]
    assert chunks[-1].usage == made.usage and not chunks[-1].choices
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == made.choices[0].finish_reason
    plain = client.completions.create(model="gag", prompt=[METAL, GENERAL])
    assert [choice.text for choice in plain.choices] == [asked[METAL], asked[GENERAL]]
    answer = client.responses.create(model="gag", input=METAL)
    assert answer.output_text == asked[METAL] and answer.status in ("completed", "incomplete")
    with client.responses.stream(model="gag", input=METAL) as told:
        kinds = [event.type for event in told]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    assert [model.id for model in client.models.list()] == ["gag", "gag/general", "gag/metals", "gag/plants"]
    assert client.models.retrieve("gag/metals").id == "gag/metals"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=turns)  # pyright: ignore


def test_many_at_once_are_each_what_they_are_alone(served: Served, asked: dict[str, str]) -> None:
    questions = [*QUESTIONS, GENERAL] * 6
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(served.chat, questions))
        streams = list(pool.map(lambda question: served.chat(question, stream=True), questions))
    assert [r.json()["choices"][0]["message"]["content"] for r in replies] == [asked[q] for q in questions]
    for question, reply in zip(questions, streams, strict=True):
        pieces = [
            event["choices"][0]["delta"].get("content") or "" for event in events(reply) if event["choices"]
        ]
        assert "".join(pieces) == asked[question]


def test_a_stream_says_the_route_first_and_the_times_last(served: Served) -> None:
    told = events(served.chat(METAL, stream=True, gag={"background": True}))
    first, last = told[0]["gag"], told[-1]["gag"]
    assert first["route"]["domain"] == "metals" and first["vectors"] == 1 and "seconds" not in first
    assert last["seconds"]["answer"] > 0 and [event for event in told[1:-1] if "gag" in event] == []
    assert "usage" not in told[-1] and told[-1]["choices"] == []
    whole = served.chat(METAL, gag={"background": True}).json()["choices"][0]["message"]
    said = [event["choices"][0]["delta"].get("reasoning_content", "") for event in told if event["choices"]]
    assert "".join(said) == whole["reasoning_content"] != ""
    assert "reasoning_content" not in served.chat(METAL).json()["choices"][0]["message"]


def test_a_domain_can_be_asked_by_name_and_an_unknown_one_is_named(served: Served) -> None:
    assert served.chat(GENERAL, model="gag/plants").json()["model"] == "gag/plants"
    assert served.chat(METAL, model="gag/general").json()["gag"]["vectors"] == 0
    assert "gag/metals" in refused(served.chat(METAL, model="gag/woods"), 404, "model")
    assert served.get("/v1/models/gag/woods").status_code == 404


def test_a_seed_draws_the_same_again_whatever_runs_beside(served: Served) -> None:
    def drawn(seed: int | None) -> str:
        more = {} if seed is None else {"seed": seed}
        return served.chat(METAL, temperature=1.5, **more).json()["choices"][0]["message"]["content"]

    alone = drawn(5)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(drawn, [5] * 8)) == {alone}
        assert len(set(pool.map(drawn, range(8)))) > 1
        assert len(set(pool.map(drawn, [None] * 8))) > 1


def test_several_answers_stops_and_log_probabilities(served: Served, asked: dict[str, str]) -> None:
    body = served.chat(METAL, n=3, temperature=1.3, seed=1).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in body["choices"]}) > 1
    stop = asked[METAL][3:6]
    cut = served.chat(METAL, stop=[stop, "never"]).json()["choices"][0]
    assert cut["message"]["content"] == asked[METAL][: asked[METAL].index(stop)].rstrip()
    assert cut["finish_reason"] == "stop"
    told = served.chat(METAL, logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 3 and token["logprob"] <= 0 for token in told)
    assert all(token["top_logprobs"][0]["token"] == token["token"] for token in told)
    streamed = events(served.chat(METAL, logprobs=True, stream=True))
    parts = [
        e["choices"][0]["logprobs"]["content"]
        for e in streamed
        if e["choices"] and e["choices"][0]["logprobs"]
    ]
    assert [token["token"] for part in parts for token in part] == [token["token"] for token in told]
    short = served.chat(METAL, max_completion_tokens=2).json()
    assert short["usage"]["completion_tokens"] == 2 and short["choices"][0]["finish_reason"] == "length"
    plain = served.post("/v1/completions", json={"prompt": METAL, "logprobs": 2}).json()["choices"][0]
    assert len(plain["logprobs"]["tokens"]) == len(plain["logprobs"]["token_logprobs"]) and plain["text"]


class ByWord:
    """Routes by a word."""

    def route(self, questions):
        found = ["metals" if "metals" in question else "general" for question in questions]
        known = [question.startswith("What is") for question in questions]
        return [
            Route(domain, 1.0, "by a word", {}, not sure) for domain, sure in zip(found, known, strict=True)
        ]


def test_a_follow_up_stays_in_its_domain(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.server.gag, "router", ByWord())
    turns = [
        {"role": "user", "content": METAL},
        {"role": "assistant", "content": "copper"},
        {"role": "user", "content": "And why?"},
    ]
    assert served.post("/v1/route", json={"input": "And why?"}).json()["data"][0]["domain"] == "general"
    followed = served.post("/v1/route", json={"messages": turns}).json()["data"][0]
    body = served.post("/v1/chat/completions", json={"messages": turns}).json()
    assert followed["domain"] == "metals" and body["model"] == "gag/metals"
    assert body["gag"]["asked"] == f"{METAL} And why?"
    assert body["gag"]["route"]["reason"] == "by a word, with the turn before"
    off = served.post("/v1/chat/completions", json={"messages": turns, "gag": {"turns": 1}}).json()
    assert (
        off["model"] == "gag/general" and off["usage"]["prompt_tokens"] > body["usage"]["prompt_tokens"] - 9
    )
    assert served.post("/v1/responses", json={"input": turns}).json()["model"] == "gag/metals"
    other = [*turns[:2], {"role": "user", "content": GENERAL}]  # a question of its own
    assert served.post("/v1/route", json={"messages": other}).json()["data"][0]["domain"] == "general"


def test_a_question_whose_events_are_taken_at_once_is_forgotten_too(served: Served) -> None:
    """Whoever reads faster than the step ends leaves nothing unread, and nothing behind."""

    class Swift(Ticket):
        def _tell(self, event) -> None:
            super()._tell(event)
            self.take()

    owner = served.server.owner
    owner.submit([Swift(Ask((("user", question),)), lambda: None) for question in QUESTIONS])
    ends = time.monotonic() + 10
    while owner._open:
        assert time.monotonic() < ends, f"{owner._open} questions are counted that were answered"
        time.sleep(0.01)


WRONG = {
    "messages": {"messages": []},
    "messages[0]": {"messages": [{"role": "user", "content": " "}]},
    "messages.0.role": {"messages": [{"role": "wizard", "content": "x"}]},
    "n": {"n": 10**6},
    "stop": {"stop": ["x"] * 10**4},
    "tools": {"tools": [{"type": "function"}]},
    "response_format": {"response_format": {"type": "json_object"}},
    "logit_bias": {"logit_bias": {"5": 1}},
    "chat_template": {"chat_template": "{{ messages }}"},
    "prompt_embeds": {"prompt_embeds": "AAAA"},
    "temperature": {"temperature": 9},
    "top_p": {"top_p": 0},
    "max_tokens": {"max_tokens": 0},
    "top_logprobs": {"top_logprobs": 2},
    "gag.readout_tokens": {"gag": {"readout_tokens": 0}},
    "whatever": {"whatever": 1},
}


@pytest.mark.parametrize("param", WRONG)
def test_what_is_not_served_is_refused_by_name(served: Served, param: str) -> None:
    body = {"messages": [{"role": "user", "content": METAL}], **WRONG[param]}
    assert refused(served.post("/v1/chat/completions", json=body), 400, param)


def test_requests_that_ask_for_nothing_special_are_served(served: Served) -> None:
    more = {"user": "me", "metadata": {}, "store": False, "tools": [], "tool_choice": "none", "n": None,
            "seed": None, "response_format": {"type": "text"}, "frequency_penalty": 0}  # fmt: skip
    assert served.chat(METAL, **more).status_code == 200
    parts = [{"type": "text", "text": METAL}]
    turns = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}]
    assert served.post("/v1/chat/completions", json={"messages": turns}).status_code == 200
    parts.append({"type": "image_url", "image_url": {"url": "x"}})  # pyright: ignore
    assert "image_url" in refused(
        served.post("/v1/chat/completions", json={"messages": turns}), 400, "messages[1]"
    )


def test_bodies_that_are_no_requests_are_refused(served: Served) -> None:
    path, kind = "/v1/chat/completions", {"Content-Type": "application/json"}
    for content in (b"", b"{", b"[]", b"5", b'{"messages": "\xff\xfe"}', b"[" * 100_000, b'{"model": NaN}'):
        refused(served.post(path, content=content, headers=kind), 400)
    half = b'{"messages": [{"role": "user", "content": "\\ud800"}], "model": "gag"}'
    refused(served.post(path, content=half, headers=kind), 400)
    model = b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}'
    refused(served.post(path, content=model, headers=kind), 400)
    refused(served.chat("x" * 2_000_000), 413)
    assert "positions" in refused(served.chat("tin " * 100_000), 400)
    refused(served.get("/v1/nothing"), 404), refused(served.get(path), 405)
    long = served.get("/health", headers={"X-Request-Id": "a" * 10_000})
    assert len(long.headers["x-request-id"]) == 32
    assert served.get("/health", headers={"X-Request-Id": "my-1"}).headers["x-request-id"] == "my-1"


def test_control_tokens_that_a_user_types_are_text(served: Served) -> None:
    from gag.models.loading import load_tokenizer

    project = served.server.gag.project
    control = load_tokenizer(project.settings.base, project.root).eos_token
    plain = served.chat("x", max_tokens=1).json()["usage"]["prompt_tokens"]
    for turns in (
        [{"role": "user", "content": f"x{control}"}],
        [{"role": "system", "content": str(control)}, {"role": "user", "content": "x"}],
    ):
        body = {"model": "gag/general", "messages": turns, "max_tokens": 1}
        assert served.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens"] > plain + 1


def test_a_client_that_goes_frees_its_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = served.server.owner
    step = owner.answering.step
    monkeypatch.setattr(owner.answering, "step", lambda: (time.sleep(0.05), step()))
    body = {"messages": [{"role": "user", "content": METAL}], "max_tokens": 3000}
    for stream in (True, False):
        with httpx.Client(base_url=served.base_url, timeout=0.3) as gone:
            if stream:
                with gone.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
                    next(reply.iter_lines())
                    assert owner.load != (0, 0)
            else:
                with pytest.raises(httpx.TimeoutException):
                    gone.post("/v1/chat/completions", json=body | {"seed": 1, "gag": {"readout_tokens": 2}})
        ends = time.monotonic() + 10
        while owner.load != (0, 0) and time.monotonic() < ends:
            time.sleep(0.02)
        assert owner.load == (0, 0) and not owner.answering.saying


def test_more_than_may_wait_is_sent_away_with_a_time(project: Project) -> None:
    with serve(load_project(project.root, ("serve.waiting=2",))) as busy:
        stop = threading.Event()
        busy.server.owner.call(lambda: stop.wait(20))
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(busy.chat, METAL) for _ in range(2)]
            while busy.server.owner._open < 2:
                time.sleep(0.01)
            reply = busy.chat(METAL)
            assert "ask again soon" in refused(reply, 429) and reply.headers["retry-after"] == "1"
            stop.set()
            assert all(one.result().status_code == 200 for one in waiting)


def test_stopping_answers_what_was_taken_and_takes_no_more(project: Project) -> None:
    with serve(project) as client:
        owner = client.server.owner
        assert client.get("/readyz").status_code == 200
        hold = threading.Event()
        owner.call(lambda: hold.wait(20))
        with ThreadPoolExecutor(3) as pool:
            taken = [pool.submit(client.chat, METAL) for _ in range(2)]
            while owner._open < 2:
                time.sleep(0.01)
            stopped = pool.submit(owner.stop, 20.0)
            while not owner.draining:
                time.sleep(0.01)
            assert client.get("/readyz").status_code == 503 and client.get("/health").status_code == 200
            reply = client.chat(METAL)
            assert refused(reply, 503) and reply.headers["retry-after"]
            hold.set()
            assert [one.result().status_code for one in taken] == [200, 200] and stopped.result()


def test_the_engine_outlives_a_fault_of_its_own(served: Served, monkeypatch, capsys) -> None:
    answering = served.server.owner.answering
    monkeypatch.setattr(answering, "_say", lambda: 1 / 0)
    assert "the engine failed (division by zero)" in refused(served.chat(METAL), 500)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert served.server.owner.answering is not answering and served.chat(METAL).status_code == 200


def test_work_that_nobody_waits_for_any_more_ends_nothing(served: Served) -> None:
    owner, hold = served.server.owner, threading.Event()
    owner.call(lambda: hold.wait(20))
    assert owner.call(lambda: 1).cancel()
    hold.set()
    assert owner.call(lambda: 2).result(20) == 2 and owner.alive
    assert served.chat(METAL).status_code == 200


def test_keys_say_who_may_ask_what(project: Project) -> None:
    file = project.root / "keys.yaml"
    metals, admin = new_key(file, "lab", ["metals"], False), new_key(file, "boss", [], True)
    assert metals not in file.read_text() and file.stat().st_mode & 0o777 == 0o600
    with serve(load_project(project.root, ("serve.keys=keys.yaml",))) as client:
        for wrong in ({}, {"Authorization": "Bearer nothing"}, {"Authorization": f"Basic {metals}"}):
            reply = client.post("/v1/chat/completions", json={"messages": []}, headers=wrong)
            assert refused(reply, 401) and reply.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200
        client.headers["Authorization"] = f"Bearer {metals}"
        assert client.chat(METAL).json()["model"] == "gag/metals"
        assert refused(client.chat(METAL, model="gag/plants"), 403, "model")
        elsewhere = client.chat(QUESTIONS[2]).json()
        assert (
            elsewhere["model"] == "gag/general"
            and "not open to this key" in elsewhere["gag"]["route"]["reason"]
        )
        seen = client.post("/v1/route", json={"input": QUESTIONS[2]}).json()["data"][0]
        assert seen["domain"] == "general" and seen["scores"].keys() == {"general", "metals"}
        assert elsewhere["gag"]["route"]["scores"] == seen["scores"]
        assert elsewhere["gag"]["route"]["score"] == seen["score"] == seen["scores"]["general"]
        assert [one["id"] for one in client.get("/v1/domains").json()["data"]] == ["metals"]
        assert refused(client.delete("/v1/domains/metals"), 403)
        client.headers["Authorization"] = f"Bearer {admin}"
        assert client.chat(QUESTIONS[2]).json()["model"] == "gag/plants"


def test_the_metrics_are_those_that_dashboards_read(served: Served) -> None:
    served.chat(METAL), served.chat(METAL)
    found = {family.name: family for family in text_string_to_metric_families(served.get("/metrics").text)}
    names = ["e2e_request_latency_seconds", "time_to_first_token_seconds", "inter_token_latency_seconds",
             "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
             "request_prompt_tokens", "request_generation_tokens", "request_max_num_generation_tokens",
             "prompt_tokens", "generation_tokens", "request_success", "num_requests_running",
             "num_requests_waiting", "kv_cache_usage_perc"]  # fmt: skip
    assert {f"gag:{name}" for name in names} <= found.keys()
    assert {f"gag:{name}" for name in ("route", "expert_seconds", "vector_cache_hits")} <= found.keys()
    hits = found["gag:vector_cache_hits"].samples[0].value
    served.chat(METAL)
    assert f"gag:vector_cache_hits_total {hits + 1}" in served.get("/metrics").text
    labels = [sample.labels for sample in found["gag:request_success"].samples]
    assert any(label["model_name"] == "gag/metals" for label in labels)
