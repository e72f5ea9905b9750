"""What the tab reads through TensorBoard is what the file holds, bit for bit, or absent, and said."""

import numpy as np
import pytest
from tab.providers import CONTEXT, LOADERS, provider_of
from written import frames_of, make_info, make_record, write_run

from lightning_gradwatch import read_run
from lightning_gradwatch.judge.run import RunError
from lightning_gradwatch.record.events.file import EventFile, framed
from lightning_gradwatch.record.events.step_events import findings_event, step_event
from lightning_gradwatch.record.finding import Finding, Remedy, Severity
from lightning_gradwatch.tab.stored import ListedRun, StoredRuns

INFO = make_info(3)
FINDING = Finding("GW101", "vanishing-gradient", Severity.ERROR, ("net.0",), 1, 2, 0.5, 1e-3, "c", Remedy("r"), "m")

pytestmark = [pytest.mark.parametrize("load_fast", LOADERS), pytest.mark.judges]


def read(found, name="run"):
    stored = StoredRuns(found.provider, samples=found.samples)
    listed = next(each for each in stored.listed(CONTEXT, "") if each.name == name)
    return stored.read(CONTEXT, "", listed)


def held(run):
    """Return each record with all its numbers."""
    return [
        (
            *(record.step, record.loss, record.layout, record.learning_rates),
            *((name, vector.tobytes()) for name, vector in record.metrics.items()),
            *(record.layer_state.tobytes(), record.window_fill.tobytes(), record.forward_rms.tobytes()),
            *(record.loop_calls.tobytes(), record.loop_attenuation.tobytes()),
        )
        for record in run.records
    ]


def test_a_run_is_what_the_file_holds(tmp_path, load_fast):
    folder, _ = write_run(tmp_path / "run", noise=0.3, dead_fraction=1 / 3, inactive_share=0.123456789)
    with provider_of(tmp_path, load_fast) as found:
        stored = read(found)
    assert held(stored.run) == held(read_run(folder))
    assert stored.run.infos == read_run(folder).infos
    assert not stored.sampled
    assert stored.run.problems == ()


def test_a_loop_and_layers_that_join_later_are_there_too(tmp_path, load_fast):
    later = make_info(4)
    with EventFile(tmp_path / "run") as file:
        for step in range(4):
            info = INFO if step < 2 else later
            turns = np.full(len(info.sites), 5.0)
            record = make_record(info, step, loop_calls=turns, loop_attenuation=turns / 7)
            file.write(step_event(record, info, describe=step in (0, 2)))
    with provider_of(tmp_path, load_fast) as found:
        stored = read(found)
    assert held(stored.run) == held(read_run(tmp_path / "run"))
    assert list(stored.run.infos) == [INFO.layout, later.layout]
    assert stored.run.problems == ()


def test_the_findings_that_the_end_of_a_fit_adds_cost_no_step(tmp_path, load_fast):
    with EventFile(tmp_path / "run") as file:
        for step in range(5):
            file.write(step_event(make_record(INFO, step), INFO, describe=step == 0))
        file.write(findings_event([FINDING], step=5))
    with provider_of(tmp_path, load_fast) as found:
        stored = read(found)
    assert [record.step for record in stored.run.records] == [0, 1, 2, 3, 4]
    assert stored.run.findings == (FINDING,)
    assert stored.run.problems == ()


def test_a_step_whose_envelope_another_event_displaced_is_told(tmp_path, load_fast):
    """As in files whose fit ended with findings at the last step: the fast loader hands on one event a step."""
    with EventFile(tmp_path / "run") as file:
        for step in range(5):
            file.write(step_event(make_record(INFO, step), INFO, describe=step == 0))
        file.write(findings_event([FINDING], step=4))
    with provider_of(tmp_path, load_fast) as found:
        run = read(found).run
    steps = [record.step for record in run.records]
    if load_fast == "true":
        assert steps == [0, 1, 2, 3]
        assert "step 4 is left out: another event has the same step" in run.problems[0]
    else:
        assert (steps, run.problems) == ([0, 1, 2, 3, 4], ())
    assert run.findings == (FINDING,)


def test_of_a_sample_the_steps_that_are_there_are_right_and_the_rest_is_told(tmp_path, load_fast):
    folder, _ = write_run(tmp_path / "run", INFO, steps=range(300), noise=0.3)
    with provider_of(tmp_path, load_fast, samples=40) as found:
        stored = read(found)
    assert stored.sampled
    assert 30 <= len(stored.run.records) <= 40
    assert stored.run.records[-1].step == 299
    assert stored.run.info == INFO
    assert set(held(stored.run)) <= set(held(read_run(folder)))
    assert "TensorBoard keeps 40 of this run's events" in stored.run.problems[0]
    assert "--samples_per_plugin=gradwatch=0" in stored.run.problems[0]


def test_findings_of_which_the_last_report_was_dropped_are_unknown_and_not_none(tmp_path, load_fast):
    with EventFile(tmp_path / "run") as file:
        for step in range(300):
            told = [FINDING] if step == 100 else None
            file.write(step_event(make_record(INFO, step), INFO, describe=step == 0, findings=told))
    with provider_of(tmp_path, load_fast, samples=5) as found:
        stored = read(found)
    assert 100 not in [record.step for record in stored.run.records], "the sample has it: choose another step"
    assert "what was found last, at step 100, isn't among the events" in stored.findings_lost


def test_a_sampled_run_without_any_report_has_no_findings(tmp_path, load_fast):
    write_run(tmp_path / "run", steps=range(300))
    with provider_of(tmp_path, load_fast, samples=5) as found:
        stored = read(found)
    assert (stored.sampled, stored.findings_lost, stored.run.findings) == (True, "", ())


def test_a_damaged_step_is_left_out_and_told(tmp_path, load_fast):
    """With right checksums of the file: the event's own seal tells."""
    folder, path = write_run(tmp_path / "run", steps=range(5))
    frames = frames_of(path)
    damaged = bytearray(frames[3][12:-4])
    damaged[damaged.index(b"gradwatch/grad_norm") + 60] ^= 0x10
    path.write_bytes(b"".join((*frames[:3], framed(bytes(damaged)), *frames[4:])))
    with provider_of(tmp_path, load_fast) as found:
        run = read(found).run
    assert [record.step for record in run.records] == [0, 1, 3, 4]
    assert "step 2 is left out" in run.problems[0]
    assert run.damaged
    assert len(read_run(folder).records) == 4


def test_a_run_that_began_again_has_the_later_record_of_a_step(tmp_path, load_fast):
    with EventFile(tmp_path / "run") as file:
        for step, loss in ((0, 1.0), (1, 1.1), (2, 1.2), (1, 2.1), (2, 2.2)):
            record = make_record(INFO, step, loss=loss)
            file.write(step_event(record, INFO, describe=(step, loss) == (0, 1.0)))
    with provider_of(tmp_path, load_fast) as found:
        run = read(found).run
    assert [(record.step, record.loss) for record in run.records] == [(0, 1.0), (1, 2.1), (2, 2.2)]


def test_steps_without_a_description_are_no_run(tmp_path, load_fast):
    with EventFile(tmp_path / "run") as file:
        file.write(step_event(make_record(INFO, 0), INFO, describe=False))
    with provider_of(tmp_path, load_fast) as found, pytest.raises(RunError, match="no step of run that can be read"):
        read(found)


def test_runs_are_listed_by_their_numbers_and_a_version_moves_with_the_steps(tmp_path, load_fast):
    for name in ("version_10", "version_9", "sub/version_2"):
        write_run(tmp_path / name, steps=range(2))
    with provider_of(tmp_path, load_fast) as found:
        listed = StoredRuns(found.provider).listed(CONTEXT, "")
    assert [each.name for each in listed] == ["sub/version_2", "version_9", "version_10"]
    assert all(isinstance(each, ListedRun) and each.version.startswith("1.") for each in listed)
