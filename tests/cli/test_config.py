"""Settings: from three places in one order of precedence, and every mistake named with its place."""

from __future__ import annotations

import os
from pathlib import Path

import jsonschema
import pytest

from lightning_gradwatch.cli.config import load_settings
from lightning_gradwatch.cli.schemas import config_schema_text, read_schema
from lightning_gradwatch.cli.settings import KEYS, ConfigError, Settings
from lightning_gradwatch.judge.catalog import RULE_BY_CODE, RULES
from lightning_gradwatch.judge.verdict import IgnoredLayers
from lightning_gradwatch.record.finding import Severity

WHOLE = """
select = ["GW1", "GW201"]
ignore = ["GW104"]
require = ["GW101"]
fail-on = "error"
format = "junit"
baseline = "runs/good"

[rules.GW101]
ratio = 0.01
min_grad_rms = "none"
patience = 5

[[ignore-layers]]
rules = ["GW2"]
layers = ["head.*", "neck"]
reason = "a small head,  dead on purpose"
"""


@pytest.fixture
def load(tmp_path):
    def load(toml=None, given=None, environment=None, name="gradwatch.toml", **options):
        if toml is not None:
            (tmp_path / name).write_text(toml)
        folder = tmp_path / "deep" / "er"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / ".git").mkdir(exist_ok=True)
        return load_settings(given or {}, environment=environment or {}, folder=folder, **options)

    return load


def values(thresholds):
    return {code: {name: entry.value for name, entry in fields.items()} for code, fields in thresholds.items()}


def test_without_any_place_the_run_decides(load):
    assert load() == Settings()


def test_a_file_above_is_read_whole(load, tmp_path):
    settings = load(WHOLE)
    assert settings.select == ("GW1", "GW201")
    assert settings.ignore == ("GW104",)
    assert settings.require == ("GW101",)
    assert settings.fail_on == Severity.ERROR
    assert settings.format == "junit"
    assert settings.baseline == str(tmp_path / "runs/good")
    assert values(settings.thresholds) == {"GW101": {"ratio": 0.01, "min_grad_rms": None, "patience": 5}}
    reason = "a small head, dead on purpose"
    assert settings.ignore_layers == (
        IgnoredLayers(rule="GW2", pattern="head.*", reason=reason),
        IgnoredLayers(rule="GW2", pattern="neck", reason=reason),
    )


def test_pyproject_has_the_same_under_its_table(load):
    toml = "[project]\nname = 'x'\n[tool.gradwatch]\nfail-on = 'error'\n[tool.gradwatch.rules.GW201]\nwarn = 0.8\n"
    settings = load(toml, name="pyproject.toml")
    assert settings.fail_on == Severity.ERROR
    assert values(settings.thresholds) == {"GW201": {"warn": 0.8}}


def test_a_pyproject_without_our_table_is_passed_by(load, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert load("fail-on = 'error'").fail_on == Severity.ERROR


def test_in_one_folder_our_own_file_beats_pyproject(load):
    load("[tool.gradwatch]\nformat = 'json'\n", name="pyproject.toml")
    assert load("format = 'sarif'").format == "sarif"


# -- whose settings


def find(folder, **options):
    settings = load_settings({}, environment={}, folder=folder, **options)
    return settings.file and Path(settings.file).name, settings.format, settings.notes


def test_the_file_that_was_used_is_known(load, tmp_path):
    assert load("format = 'json'").file == str(tmp_path / "gradwatch.toml")
    assert load("format = 'json'", file="").file is None
    assert load(environment={"GRADWATCH_CONFIG": str(tmp_path / "gradwatch.toml")}).file is not None


@pytest.mark.parametrize("git", ["folder", "file"])
def test_the_search_ends_at_the_repositorys_root(git, tmp_path):
    """A file of a worktree's or a submodule's marks a root too."""
    (tmp_path / "gradwatch.toml").write_text("format = 'sarif'")
    inner = tmp_path / "repository" / "deep" / "er"
    inner.mkdir(parents=True)
    mark = tmp_path / "repository" / ".git"
    if git == "folder":
        mark.mkdir()
    else:
        mark.write_text("gitdir: elsewhere")
    assert find(inner) == (None, "text", ())
    (tmp_path / "repository" / "gradwatch.toml").write_text("format = 'json'")
    assert find(inner) == ("gradwatch.toml", "json", ())
    (tmp_path / "repository" / "deep" / "pyproject.toml").write_text("[tool.gradwatch]\nformat = 'junit'")
    assert find(inner) == ("pyproject.toml", "junit", ())


def test_of_two_roots_the_nearest_counts(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "gradwatch.toml").write_text("format = 'sarif'")
    (tmp_path / "inner" / ".git").mkdir(parents=True)
    assert find(tmp_path / "inner") == (None, "text", ())


def test_without_a_repository_only_this_folder_is_looked_into(tmp_path):
    (tmp_path / "gradwatch.toml").write_text("format = 'sarif'")
    (tmp_path / "mine").mkdir()
    assert find(tmp_path / "mine") == (None, "text", ())
    (tmp_path / "mine" / "pyproject.toml").write_text("[tool.gradwatch]\nformat = 'json'")
    assert find(tmp_path / "mine") == ("pyproject.toml", "json", ())


ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")


@ROOT
@pytest.mark.parametrize("file", ["theirs", "mine"])
def test_a_repository_that_a_stranger_made_around_this_folder_is_none(file, tmp_path):
    """As one in /tmp, around everybody's folders."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "gradwatch.toml").write_text("format = 'sarif'")
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / ".git", 65534, 65534)
    if file == "theirs":
        os.chown(tmp_path / "gradwatch.toml", 65534, 65534)
    found, form, (note,) = find(tmp_path / "mine")
    assert (found, form) == (None, "text")
    assert "belongs to another user" in note


@ROOT
@pytest.mark.parametrize("link", [False, True])
def test_a_strangers_file_in_a_folder_of_everybodys_is_told_and_not_read(link, tmp_path):
    path = tmp_path / "gradwatch.toml"
    if link:
        (tmp_path / "other.toml").write_text("format = 'sarif'")
        path.symlink_to("other.toml")
    else:
        path.write_text("format = 'sarif'")
    os.chown(path, 65534, 65534, follow_symlinks=False)
    found, form, (note,) = find(tmp_path)
    assert (found, form) == (None, "text")
    assert str(path) in note
    assert find(tmp_path, file=str(path)) == ("gradwatch.toml", "sarif", ())


@ROOT
def test_a_repository_of_the_folders_owner_is_used_by_root_too(tmp_path):
    """As in a container: the checkout is another user's, and the folder too."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "gradwatch.toml").write_text("format = 'sarif'")
    for path in (tmp_path, tmp_path / ".git", tmp_path / "gradwatch.toml"):
        os.chown(path, 1001, 1001)
    assert find(tmp_path) == ("gradwatch.toml", "sarif", ())


def test_command_line_beats_environment_beats_file(load):
    environment = {"GRADWATCH_FAIL_ON": "warning", "GRADWATCH_FORMAT": "json", "GRADWATCH_SELECT": "GW2"}
    settings = load(WHOLE, {"format": "sarif", "select": None}, environment)
    assert (settings.format, settings.fail_on, settings.select) == ("sarif", Severity.WARNING, ("GW2",))
    assert settings.require == ("GW101",)


def test_thresholds_are_merged_field_by_field_and_ignored_layers_add_up(load):
    environment = {"GRADWATCH_SET": "GW101.ratio=0.2 GW101.gain=0.5", "GRADWATCH_IGNORE_LAYERS": "GW1:a GW2:b:c"}
    settings = load(
        WHOLE, {"rules": ["GW101.ratio=3e-1", "gw202.fraction=0.9"], "ignore-layers": ["GW:z"]}, environment
    )
    assert values(settings.thresholds) == {
        "GW101": {"ratio": 0.3, "gain": 0.5, "min_grad_rms": None, "patience": 5},
        "GW202": {"fraction": 0.9},
    }
    assert settings.thresholds["GW101"]["ratio"].where == "--set GW101.ratio=3e-1"
    assert [(each.rule, each.pattern) for each in settings.ignore_layers] == [
        ("GW", "z"),
        ("GW1", "a"),
        ("GW2", "b:c"),
        ("GW2", "head.*"),
        ("GW2", "neck"),
    ]


def test_a_whole_number_stays_one(load):
    value = load(given={"rules": ["GW101.patience=5"]}).thresholds["GW101"]["patience"].value
    assert isinstance(value, int)


def test_a_file_can_be_named_or_left_out(load, tmp_path):
    other = tmp_path / "other.toml"
    other.write_text("format = 'github'")
    assert load(WHOLE, file=str(other)).format == "github"
    assert load(WHOLE, file="").format == "text"
    assert load(WHOLE, environment={"GRADWATCH_CONFIG": str(other)}).format == "github"
    with pytest.raises(ConfigError, match=r"gone\.toml can't be read"):
        load(file=str(tmp_path / "gone.toml"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "pyproject.toml").write_text("")
    with pytest.raises(ConfigError, match=r"has no table \[tool.gradwatch\]"):
        load(file=str(tmp_path / "sub" / "pyproject.toml"))


def test_empty_variables_and_others_are_no_settings(load):
    assert load(environment={"GRADWATCH_SELECT": " ", "PYTEST_GRADWATCH": "1", "OTHER": "x"}) == Settings()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("fail_on = 'error'", r"gradwatch\.toml: unknown key 'fail_on'; the nearest is fail-on"),
        ("[tool.gradwatch]\nselect = []", "the keys stand alone here"),
        ("selct = []", "unknown key 'selct'; the nearest is select"),
        ("select = ['GW9']", r"gradwatch\.toml: select: no rule's code starts with 'GW9'"),
        ("select = ['']", r"gradwatch\.toml: select: an entry is empty .*; give codes"),
        (
            "[rules.dead-units]\nwarn = 0.5\n[rules.GW201]\nwarn = 0.9",
            r"rules\.GW201\.warn: is given as .+rules\.dead-units\.warn already, which is the same rule",
        ),
        ("select = [1]", "select: must be a list of codes"),
        ("select = 1", "select: must be a list of codes"),
        ("fail-on = 'never'", "fail-on: must be one of warning, error, not 'never'"),
        ("format = ['text']", "format: must be one of"),
        ("baseline = 1", "baseline: must be text"),
        ("rules = 1", "rules: must be a table of rules"),
        ("rules.GW101 = 1", "rules.GW101: must be a table of thresholds"),
        ("rules.GW999.x = 1", r"rules\.GW999: no rule has the code or the name 'GW999'; the nearest is"),
        ("rules.GW101.ration = 1", r"rules\.GW101\.ration: GW101 has no threshold 'ration'; the nearest is ratio"),
        ("rules.GW101.ratio = true", r'rules\.GW101\.ratio: must be a number or "none", not True'),
        ("rules.GW101.ratio = 'much'", "must be a number"),
        ("rules.GW201.observations = 5", "decides how a run is measured"),
        ("ignore-layers = 1", "must be an array of tables"),
        ("ignore-layers = [1]", r"ignore-layers\[0\]: must be a table with rules, layers, reason"),
        ("ignore-layers = [{rules = ['GW1'], layers = ['x']}]", r"ignore-layers\[0\]: 'reason' is missing"),
        ("ignore-layers = [{rules = ['GW1'], layer = ['x'], reason = 'y'}]", "'layer'; the nearest is layers"),
        ("ignore-layers = [{rules = ['GW1'], layers = 'x', reason = 'y'}]", "layers must be a list of patterns"),
        ("ignore-layers = [{rules = ['GW1'], layers = ['x'], reason = 1}]", "reason: must be text"),
        ("ignore-layers = ['GW9:x']", "no rule's code starts with 'GW9'"),
        ("select = ", r"gradwatch\.toml isn't TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(load, toml, message):
    with pytest.raises(ConfigError, match=message):
        load(toml)


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ({"select": "GW9"}, {}, "--select: no rule's code starts with 'GW9'"),
        ({"rules": ["ratio=1"]}, {}, "--set ratio=1: must be CODE.THRESHOLD=NUMBER"),
        ({"rules": ["GW101.ratio"]}, {}, "must be CODE.THRESHOLD=NUMBER"),
        ({"rules": ["GW101.ratio=x"]}, {}, "--set GW101.ratio=x: must be a number"),
        ({"ignore-layers": ["head"]}, {}, "--ignore-layers head: must be CODE:PATTERN"),
        (
            {},
            {"GRADWATCH_FAILON": "error"},
            "unknown environment variable GRADWATCH_FAILON; the nearest is GRADWATCH_FAIL_ON",
        ),
        ({}, {"GRADWATCH_FAIL_ON": "never"}, "GRADWATCH_FAIL_ON: must be one of"),
    ],
)
def test_a_mistake_elsewhere_is_named_with_its_place(load, given, environment, message):
    with pytest.raises(ConfigError, match=message):
        load(given=given, environment=environment)


def test_a_weaker_place_is_checked_even_where_a_stronger_one_decides(load):
    with pytest.raises(ConfigError, match="fail-on"):
        load("fail-on = 'never'", {"fail-on": "error"})


class TestSchema:
    SCHEMA = read_schema("config")

    def accepts(self, toml):
        import sys  # noqa: PLC0415

        if sys.version_info >= (3, 11):
            import tomllib  # noqa: PLC0415
        else:
            import tomli as tomllib  # noqa: PLC0415
        return jsonschema.Draft202012Validator(self.SCHEMA).is_valid(tomllib.loads(toml))

    def test_it_is_a_schema_and_knows_every_key_rule_and_threshold(self):
        jsonschema.Draft202012Validator.check_schema(self.SCHEMA)
        assert set(self.SCHEMA["properties"]) == set(KEYS)
        assert set(self.SCHEMA["properties"]["rules"]["properties"]) == {
            *RULE_BY_CODE,
            *(rule.name for rule in RULES),
        }

    def test_the_shipped_file_follows_the_rules(self):
        """Else: python -m lightning_gradwatch.cli.schemas."""
        from importlib import resources  # noqa: PLC0415

        shipped = resources.files("lightning_gradwatch").joinpath("cli/schemas/config.schema.json").read_text()
        assert shipped == config_schema_text()

    def test_the_defaults_are_the_rules(self):
        for rule in RULES:
            properties = self.SCHEMA["properties"]["rules"]["properties"][rule.code]["properties"]
            for name, entry in properties.items():
                default = getattr(rule(), name)
                assert entry["default"] == ("none" if default is None else default)

    def test_what_is_loaded_is_accepted(self):
        assert self.accepts(WHOLE)
        assert self.accepts("")

    @pytest.mark.parametrize(
        "toml",
        [
            "fail_on = 'error'",
            "fail-on = 'never'",
            "select = ['XX']",
            "rules.GW101.ration = 1",
            "rules.GW101.patience = 1.5",
            "rules.GW201.observations = 5",
            "rules.GW101.gain = 'none'",
            "ignore-layers = [{rules = ['GW1'], layers = ['x']}]",
        ],
    )
    def test_what_is_refused_is_refused(self, toml):
        assert not self.accepts(toml)


class TestOddFiles:
    """Settings that can't be read end a check: it must not get laxer by a link that leads nowhere."""

    @pytest.mark.parametrize("name", ["gradwatch.toml", "pyproject.toml"])
    def test_a_link_that_leads_nowhere_is_told(self, name, tmp_path):
        (tmp_path / name).symlink_to("../shared/settings.toml")
        with pytest.raises(
            ConfigError, match=rf"{name} \(a link to ../shared/settings.toml\) can't be read: No such file"
        ):
            load_settings({}, environment={}, folder=tmp_path)

    @pytest.mark.parametrize("name", ["gradwatch.toml", "pyproject.toml"])
    def test_a_pipe_and_a_device_are_no_files(self, name, tmp_path):

        os.mkfifo(tmp_path / name)
        with pytest.raises(ConfigError, match="it is no file"):
            load_settings({}, environment={}, folder=tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/dev/zero")
        with pytest.raises(ConfigError, match=r"a link to /dev/zero\) can't be read: it is no file"):
            load_settings({}, environment={}, folder=tmp_path)

    def test_a_file_has_a_largest_size(self, tmp_path):
        (tmp_path / "gradwatch.toml").write_bytes(b"#" * (1 << 20) + b"\n")
        with pytest.raises(ConfigError, match="it has more than 1 MB"):
            load_settings({}, environment={}, folder=tmp_path)

    def test_a_byte_order_mark_is_none_of_the_text(self, tmp_path):
        (tmp_path / "gradwatch.toml").write_bytes(b'\xef\xbb\xbffail-on = "error"\n')
        assert load_settings({}, environment={}, folder=tmp_path).fail_on == Severity.ERROR

    def test_a_folder_that_is_gone_has_no_file(self):
        assert load_settings({}, environment={}, folder=None).file is None


class TestNames:
    @pytest.mark.parametrize("name", ["GW201", "gw201", "201", "dead-units", "Dead_Units", "DeadUnits", " dead units "])
    def test_a_rule_is_known_by_code_number_and_name(self, name, tmp_path):
        assert load_settings({"select": name}, environment={}, folder=tmp_path).select == ("GW201",)
        told = load_settings({"rules": [f"{name}.error=0.8"]}, environment={}, folder=tmp_path)
        assert told.thresholds["GW201"]["error"].value == 0.8
        told = load_settings({"ignore-layers": [f"{name}:head.*"]}, environment={}, folder=tmp_path)
        assert told.ignore_layers[0].rule == "GW201"

    def test_numbers_may_be_the_beginning_of_codes(self, tmp_path):
        assert load_settings({"select": "1,20"}, environment={}, folder=tmp_path).select == ("GW1", "GW20")

    @pytest.mark.parametrize("name", ["dead", "dead-unit", "9", "2011", "-", "٢٠١"])
    def test_what_is_no_name_is_refused_with_the_nearest(self, name, tmp_path):
        with pytest.raises(ConfigError, match="nor is one called so; the nearest is GW"):
            load_settings({"select": name}, environment={}, folder=tmp_path)

    def test_a_file_may_use_names(self, tmp_path):
        text = 'select = ["dead-units"]\n[rules.dead-units]\nerror = 0.8\n'
        (tmp_path / "gradwatch.toml").write_text(text)
        told = load_settings({}, environment={}, folder=tmp_path)
        assert told.select == ("GW201",)
        assert TestSchema().accepts(text)
