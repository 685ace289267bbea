"""What a server meets in the field: other people's requests, domains that come and go, slow clients."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gag.errors import SettingsError
from gag.project.domain import DOMAIN, PROJECTOR
from gag.project.project import Project, load_project
from gag.serving.keys import Keys, new_key
from tests.served import Served, serve
from tests.test_engine import QUESTIONS
from tests.test_serving import METAL, refused

ADMIN = "boss"


@pytest.fixture
def run_by_admin(project: Project) -> Iterator[Served]:
    key = new_key(project.root / "keys.yaml", ADMIN, [], True)
    with serve(load_project(project.root, ("serve.keys=keys.yaml",)), key) as client:
        yield client


@pytest.fixture(scope="module")
def served(built: Path) -> Iterator[Served]:
    with serve(load_project(built)) as client:
        yield client


def states(client: Served) -> dict[str, str]:
    return {one["id"]: one["state"] for one in client.get("/v1/domains").json()["data"]}


def until(done, seconds: float = 10.0) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.05)


def test_requests_made_from_the_servers_own_description_break_nothing(served: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{served.base_url}/openapi.json")
    for operation in schema.get_all_operations():
        made = operation.ok().as_strategy()

        @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=made)
        def sends(case) -> None:
            reply = case.call()
            assert reply.status_code < 500, (case.as_curl_command(), reply.text)

        sends()
    assert served.chat(METAL).status_code == 200


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_no_value_of_any_parameter_breaks_the_server(served: Served, value) -> None:
    for name in ("messages", "model", "stop", "n", "stream_options", "gag", "seed", "tools", "top_logprobs"):
        body = {"messages": [{"role": "user", "content": METAL}], "max_tokens": 1, name: value}
        content = json.dumps(body)  # NaN and half characters too
        reply = served.post(
            "/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
        )
        assert reply.status_code < 500, reply.text


def test_a_domain_comes_goes_and_comes_again_while_others_are_asked(run_by_admin: Served) -> None:
    client, stop, failed = run_by_admin, threading.Event(), []
    project = client.server.gag.project
    away = project.root / "incoming" / "metals"
    shutil.copytree(project.domain("metals"), away)

    def ask() -> int:
        count = 0
        while not stop.is_set():
            reply = client.chat(QUESTIONS[count % len(QUESTIONS)], seed=count)
            failed.extend([reply.text] if reply.status_code != 200 else [])
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for _ in range(4):
            assert client.delete("/v1/domains/metals").json()["deleted"] is True
            assert states(client).keys() == {"plants"}
            refused(client.chat(METAL, model="gag/metals"), 404, "model")
            added = client.post("/v1/domains", json={"path": "incoming/metals"})
            assert added.json()["state"] == "loaded", added.text
            assert client.chat(METAL, model="gag/metals").json()["gag"]["vectors"] == 1
        stop.set()
        assert sum(one.result() for one in asking) > 3
    assert failed == []
    loaded = client.server.gag.experts._adapters
    assert len(loaded) == len({name.split("@")[0] for name in loaded})


def test_a_folder_that_is_dropped_in_serves_by_itself(run_by_admin: Served) -> None:
    client, project = run_by_admin, run_by_admin.server.gag.project
    away = project.domain("metals").rename(project.root / "away")
    until(lambda: states(client).keys() == {"plants"})
    assert client.chat(METAL).json()["model"] != "gag/metals"
    shutil.copytree(away, project.domain("metals"))
    until(lambda: states(client).get("metals") == "ready")
    assert client.chat(METAL).json()["model"] == "gag/metals"


def test_a_folder_that_fails_leaves_what_answers_as_it_was(run_by_admin: Served) -> None:
    client, project = run_by_admin, run_by_admin.server.gag.project
    before = client.chat(METAL).json()["choices"][0]["message"]["content"]
    description = project.domain("metals") / DOMAIN
    whole = description.read_text()
    description.write_text(whole.replace('"schema"', '"sch"'))
    until(lambda: "fault" in client.get("/v1/domains").json()["data"][0])
    told = client.get("/v1/domains").json()["data"][0]
    assert told["state"] == "loaded" and "metals" in told["fault"]
    after = client.chat(METAL, gag={"readout_tokens": 4}).json()
    assert after["model"] == "gag/metals" and after["choices"][0]["message"]["content"] == before
    description.write_text(whole)
    until(lambda: "fault" not in client.get("/v1/domains").json()["data"][0])
    assert client.chat(METAL).json()["choices"][0]["message"]["content"] == before
    assert client.post("/v1/domains/metals/reload").json()["state"] == "loaded"
    refused(client.post("/v1/domains/woods/reload"), 404, "name")


def test_a_domain_that_is_removed_answers_what_it_was_asked(run_by_admin: Served, monkeypatch) -> None:
    client, answering = run_by_admin, run_by_admin.server.owner.answering
    step = answering.step
    monkeypatch.setattr(answering, "step", lambda: (time.sleep(0.1), step()))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.chat, METAL)
        until(lambda: answering.running == 1)
        client.delete("/v1/domains/metals")
        assert asked.result().json()["model"] == "gag/metals"
    until(lambda: not any(name.startswith("metals") for name in client.server.gag.experts._adapters))


def test_only_whole_folders_inside_the_project_are_added(run_by_admin: Served, tmp_path: Path) -> None:
    client, project = run_by_admin, run_by_admin.server.gag.project
    shutil.copytree(project.domain("metals"), tmp_path / "outside")
    (project.root / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    for path in (str(tmp_path / "outside"), "../copy", "link", "a\0b", "nothing", "n" * 1000, "."):
        refused(client.post("/v1/domains", json={"path": path}), 400, "path")
    refused(client.post("/v1/domains", json={"path": "data"}), 503)
    refused(client.post("/v1/domains", json={"path": "domains/metals"}), 400)
    client.delete("/v1/domains/metals")
    shutil.copytree(tmp_path / "outside", project.root / "broken")
    (project.root / "broken" / PROJECTOR).write_bytes(b"x")
    assert "edited or cut short" in refused(client.post("/v1/domains", json={"path": "broken"}), 503)
    assert states(client) == {"plants": "ready"}


def test_without_keys_nobody_changes_the_domains(served: Served) -> None:
    for reply in (served.delete("/v1/domains/metals"), served.post("/v1/domains", json={"path": "x"})):
        assert "--admin" in refused(reply, 403)


def test_a_client_that_stops_reading_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gag.serving.owner.BEHIND", 3)
    more = {
        "stream": True,
        "max_tokens": 200,
        "n": 16,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 1,
    }
    body = json.dumps({"messages": [{"role": "user", "content": METAL}]} | more)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((served.base_url.host, served.base_url.port or 0)) as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        stuck.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: served.server.owner.load == (0, 0) and served.server.owner._open == 0, 30)
    monkeypatch.undo()
    assert served.chat(METAL).status_code == 200


def test_key_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for text in ("5", "- name: x", "- {name: x, sha256: y}", "[", "- 5"):
        (tmp_path / "keys.yaml").write_text(text)
        with pytest.raises(SettingsError, match=r"keys.yaml holds no keys"):
            Keys(tmp_path / "keys.yaml")
    with pytest.raises(SettingsError, match=r"gag serve --new-key"):
        Keys(tmp_path / "nothing.yaml")
    new_key(tmp_path / "k.yaml", "a", [], False)
    with pytest.raises(SettingsError, match="has a key of a"):
        new_key(tmp_path / "k.yaml", "a", [], False)


def test_the_command_serves_until_it_is_told_to_stop(project: Project) -> None:
    run = [sys.executable, "-m", "gag", "serve", "--project", str(project.root), "--port", "0"]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout and server.stderr
        line = server.stdout.readline()
        assert line.startswith("serving metals, plants and general at http://127.0.0.1:")
        url = line.split(" at ")[1].split("/v1")[0]
        assert httpx.post(f"{url}/v1/completions", json={"prompt": METAL}, timeout=60).status_code == 200
        taken = subprocess.run(
            [*run[:-1], url.rpartition(":")[2]], capture_output=True, text=True, check=False
        )
        assert taken.returncode == 2 and "choose another --port" in taken.stderr
        server.terminate()
        assert server.wait(20) == 0
        assert "stopping: no more questions" in server.stderr.read()
    asked = [*run[:-2], "--new-key", "lab", "--set", "serve.keys=keys.yaml"]
    made = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert made.stdout.startswith("gag-") and "holds its hash alone" in made.stderr
