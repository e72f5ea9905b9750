"""The routes: what they answer, what they refuse, and that no fault of ours is TensorBoard's."""

import gzip
import json
import socket

import pytest
from tab.providers import LOADERS, context_of, provider_of
from tensorboard import errors
from tensorboard.plugins import base_plugin
from werkzeug.test import Client
from written import make_info, make_record, write_run

from lightning_gradwatch.judge.run import read_run
from lightning_gradwatch.page.model import page_model
from lightning_gradwatch.page.runs import PageRun
from lightning_gradwatch.record.events.file import EventFile
from lightning_gradwatch.record.events.step_events import step_event
from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.tab import stored
from lightning_gradwatch.tab.answers import MOST_RUNS
from lightning_gradwatch.tab.plugin import GradWatchPlugin

pytestmark = pytest.mark.judges
FINDING = Finding("GW101", "vanishing-gradient", Severity.ERROR, ("net.0",), 1, 2, 0.5, 1e-3, "c", Remedy("r"), "m")
HOSTILE = "<img src=x onerror=alert(1)>\"'</script>\u202e" + "x" * 90


class Empty:
    """A data provider without anything."""

    def list_tensors(self, *_, **__):
        return {}

    read_tensors = list_tensors


def client_of(provider, route, **hints):
    plugin = GradWatchPlugin(base_plugin.TBContext(data_provider=provider, sampling_hints=hints))
    return Client(plugin.get_plugin_apps()[route])


@pytest.fixture
def loaded(tmp_path):
    """A plugin over two runs, a failing one and a healthy one."""
    write_run(tmp_path / "healthy")
    write_run(tmp_path / "failing", make_info(12), attenuation=1e-9, signal_norm=1e-9)
    with provider_of(tmp_path, "false") as found:
        yield GradWatchPlugin(context_of(found)).get_plugin_apps(), tmp_path


@pytest.mark.parametrize("load_fast", LOADERS)
def test_the_model_is_what_the_page_makes_of_the_files(tmp_path, load_fast):
    folder, _ = write_run(tmp_path / "failing", make_info(12), attenuation=1e-9)
    write_run(tmp_path / "healthy")
    with provider_of(tmp_path, load_fast) as found:
        apps = GradWatchPlugin(context_of(found)).get_plugin_apps()
        assert [run["name"] for run in Client(apps["/runs"]).get("/").json["runs"]] == ["failing", "healthy"]
        answer = Client(apps["/model"]).get("/?run=failing&colour=%23425066").json
    of_file = page_model([PageRun.of(read_run(folder), name="failing", colour="#425066")])
    shown, expected = answer["runs"][0], json.loads(json.dumps(of_file))["runs"][0]
    assert shown["findings"]
    del shown["path"], expected["path"]
    assert shown == expected


def test_each_answer_may_do_nothing_in_a_browser(loaded):
    apps, _ = loaded
    for route, app in apps.items():
        query = "?run=healthy" if route == "/model" else ""
        answer = Client(app).get(f"/{query}")
        assert answer.status_code == 200, route
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["Content-Type"].split(";")[0] in {"text/javascript", "text/css", "application/json"}


def test_scripts_and_styles_are_a_table_and_no_path_leads_out_of_it(loaded):
    apps, _ = loaded
    assert {"/tab.js", "/host.js", "/tab.css", "/page/app.js", "/page/page.css"} <= apps.keys()
    assert not [route for route in apps if "*" in route or ".." in route]


def test_an_answer_is_packed_where_the_browser_takes_it(loaded):
    app = Client(loaded[0]["/model"])
    plain, packed = app.get("/?run=healthy"), app.get("/?run=healthy", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data


@pytest.mark.parametrize(
    ("query", "code", "reason"),
    [
        ("", 400, "between 1 and"),
        ("?" + "&".join(f"run={place}" for place in range(MOST_RUNS + 1)), 400, "between 1 and"),
        ("?run=nowhere", 404, "no run nowhere"),
        ("?run=../healthy", 404, "no run ../healthy"),
        ("?run=/etc/passwd", 404, "no run /etc/passwd"),
        ("?run=healthy%00", 404, "no run healthy"),
        ("?run=" + "x" * (1 << 17), 414, "longer than"),
    ],
)
def test_what_can_t_be_answered_is_refused_with_a_sentence(loaded, query, code, reason):
    answer = Client(loaded[0]["/model"]).get(f"/{query}")
    assert answer.status_code == code
    assert reason in answer.json["refused"]


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_nothing_is_written(loaded, method):
    for app in loaded[0].values():
        assert getattr(Client(app), method)("/").status_code == 405


def test_a_colour_that_is_none_is_left_out(loaded):
    app = Client(loaded[0]["/model"])
    for colour in ("red;background:url(//x)", "%23ff00", "javascript:1", "%23FF0000%0A"):
        assert app.get(f"/?run=healthy&colour={colour}").json["runs"][0]["colour"] == ""
    assert app.get("/?run=healthy&colour=%2312b5cb").json["runs"][0]["colour"] == "#12b5cb"


@pytest.mark.parametrize("route", ["/runs", "/model"])
def test_a_fault_of_ours_is_a_sentence_in_the_tab(route, caplog):
    class Faulty(Empty):
        def list_tensors(self, *_, **__):
            raise ZeroDivisionError("<b>oh</b>")

    answer = client_of(Faulty(), route).get("/?run=x")
    assert answer.status_code == 500
    assert answer.json["refused"].startswith("a fault of GradWatch: ZeroDivisionError")
    assert "failed" in caplog.text


def test_what_tensorboard_refuses_is_passed_on():
    class Gone(Empty):
        def list_tensors(self, *_, **__):
            raise errors.NotFoundError("no such experiment")

    answer = client_of(Gone(), "/runs").get("/")
    assert answer.status_code == 404
    assert "no such experiment" in answer.json["refused"]


def test_an_empty_folder_has_no_runs():
    assert client_of(Empty(), "/runs").get("/").json["runs"] == []


def test_a_run_that_can_t_be_read_stands_beside_those_that_can(tmp_path):
    write_run(tmp_path / "healthy")
    info = make_info()
    with EventFile(tmp_path / "torn") as file:
        file.write(step_event(make_record(info, 0), info, describe=False))
    with provider_of(tmp_path, "false") as found:
        model = (
            Client(GradWatchPlugin(context_of(found)).get_plugin_apps()["/model"]).get("/?run=torn&run=healthy").json
        )
    assert [run["outcome"] for run in model["runs"]] == ["unknown", "healthy"]
    assert "no step of torn that can be read" in model["runs"][0]["failure"]


def test_findings_that_tensorboard_dropped_make_a_run_unknown_and_not_healthy(tmp_path):
    info = make_info()
    with EventFile(tmp_path / "run") as file:
        for step in range(200):
            told = [FINDING] if step == 100 else None
            file.write(step_event(make_record(info, step), info, describe=step == 0, findings=told))
    with provider_of(tmp_path, "false", samples=5) as found:
        run = Client(GradWatchPlugin(context_of(found)).get_plugin_apps()["/model"]).get("/?run=run").json["runs"][0]
    assert run["outcome"] == "unknown"
    assert "what was found last, at step 100" in run["failure"]
    assert run["measured"] == 5


def test_what_a_sample_leaves_out_is_said_above_the_page(tmp_path):
    write_run(tmp_path / "long", steps=range(200))
    write_run(tmp_path / "short", steps=range(3))
    with provider_of(tmp_path, "false", samples=5) as found:
        app = Client(GradWatchPlugin(context_of(found)).get_plugin_apps()["/model"])
        (said,) = app.get("/?run=long&run=short").json["said"]
    assert said.startswith("long: TensorBoard keeps 5 of this run's events, drawn at random")


def test_hostile_names_are_spelled(tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "")
    write_run(folder, make_info(3, prefix=HOSTILE))
    with provider_of(tmp_path, "false") as found:
        apps = GradWatchPlugin(context_of(found)).get_plugin_apps()
        listed = Client(apps["/runs"]).get("/").json["runs"]
        model = Client(apps["/model"]).get("/", query_string={"run": listed[0]["name"]})
    assert listed[0]["name"] == folder.name
    assert "\u202e" not in listed[0]["shown"]
    assert "\u202e" not in json.dumps(model.json, ensure_ascii=False)
    assert model.headers["Content-Type"] == "application/json; charset=utf-8"


def test_no_file_is_opened_and_no_address_called_while_a_run_is_read(loaded, monkeypatch):
    apps, folder = loaded
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda *given, **more: opened.append(given[0]) or real(*given, **more))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network"))
    assert Client(apps["/model"]).get("/?run=healthy&run=failing").status_code == 200
    assert not [path for path in map(str, opened) if str(folder) in path]


def test_the_last_few_runs_and_models_are_kept_and_no_more(loaded, monkeypatch):
    apps, _ = loaded
    read = []
    real = stored.StoredRuns._assembled
    monkeypatch.setattr(
        stored.StoredRuns, "_assembled", lambda self, *given: read.append(given[-1]) or real(self, *given)
    )
    app = Client(apps["/model"])
    for _ in range(3):
        app.get("/?run=healthy")
        app.get("/?run=healthy&run=failing")
    assert read == ["healthy", "failing"]
