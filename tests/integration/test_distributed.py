"""Two real processes: their record is that of one process with the whole batch, and the same on both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from integration import rank_situations, ranked
from integration.by_hand import norm
from integration.nets import batches, seed
from integration.processes import Processes
from integration.situations.compiled import Silent
from integration.whole_batch import agree, columns, compare, reference, same, window

from lightning_gradwatch import evaluate, read_run

pytestmark = pytest.mark.slow

DATA_PARALLEL = ["ddp", "ddp_find_unused_parameters_true", "fsdp2"]


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}], ids=["plain", "accumulated-clipped"]
)
@pytest.mark.parametrize("strategy", DATA_PARALLEL)
def test_the_record_is_that_of_the_whole_batch_on_each_rank(strategy, settings, processes):
    count = settings.get("accumulate_grad_batches", 1)
    answers = processes(strategy=strategy, watch={"rules": [window(16 * count)]}, **settings)
    expected = reference("deep", steps=4, rows=16 * count, clip=settings.get("gradient_clip_val"))
    agree(answers)
    compare(answers[0], expected)
    assert any(
        alone != together["sites"][name]["dead_fraction"]
        for together in expected
        for name, ranks in together["dead_on_ranks"].items()
        for alone in ranks
    ), "no unit is dead on one rank only: the test shows nothing"
    assert {record["world_size"] for record in answers[0]["records"]} == {2} == {answers[0]["info"]["world_size"]}
    assert answers[0]["coverage"] == []
    assert all(answer["warnings"] == [] for answer in answers)


def test_a_compiled_step_is_read_when_the_ranks_gradients_are_together(processes):
    """The training step is in there, so that no hook says when they are."""
    answers = processes(optimizer="compiled-sgd", kind=Silent)
    agree(answers)
    expected = reference("deep", steps=4, rows=16)
    for record, step in zip(answers[0]["records"], expected, strict=True):
        assert record["loss"] == pytest.approx(step["loss"], rel=1e-5)
        for metric in ("grad_norm", "update_ratio"):
            found = columns(answers[0], record, "layers", metric)
            assert found == pytest.approx({name: each[metric] for name, each in step["layers"].items()}, rel=1e-5)
    assert all(answer["warnings"] == [] for answer in answers)


def test_under_tensor_parallelism_shared_work_counts_once(processes):
    """Units are split over the ranks at the first site, and the same on both behind it."""
    answers = processes(
        strategy="tensor_parallel",
        net="even",
        size=16,
        watch={"rules": [window(16)]},
    )
    agree(answers)
    expected = reference("even", steps=4, rows=16, size=16)
    compare(answers[0], expected)
    assert [site["units"] for site in answers[0]["info"]["sites"]] == [16, 9, 9]
    assert expected[0]["sites"]["net.1"]["dead_fraction"] >= 3 / 16


def test_a_strategy_of_another_kind_is_one_row(processes):
    """Its parameters are halves that don't say so, and no part of the data is a rank's own: both stand in its row alone."""
    answers = processes(rank_situations.fit_with_a_row_of_its_own, net="even", size=16)
    agree(answers)
    for record, step in zip(answers[0]["records"], reference("even", steps=4, rows=16, size=16), strict=True):
        assert record["loss"] == pytest.approx(step["loss"], rel=1e-5)
        assert record["global_grad_norm"] == pytest.approx(step["global_grad_norm"], rel=1e-5)
        for metric in ("grad_norm", "grad_rms", "weight_rms", "update_ratio"):
            found = columns(answers[0], record, "layers", metric)
            assert found == pytest.approx({name: each[metric] for name, each in step["layers"].items()}, rel=1e-5)
        found = columns(answers[0], record, "sites", "signal_norm")
        assert found == pytest.approx({name: each["signal_norm"] for name, each in step["sites"].items()}, rel=1e-5)


WAYS = [
    {"strategy": "ddp", "net": "normed"},
    {"strategy": "ddp_find_unused_parameters_true", "net": "branching"},
    {"strategy": "fsdp2"},
    {"strategy": "tensor_parallel", "net": "even"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way["strategy"])
def test_weights_and_generators_are_the_same_without_it_and_nothing_is_left(way, processes):
    settings = {**way, "optimizer": "adam", "steps": 6, "accumulate_grad_batches": 2}
    if way["strategy"] != "tensor_parallel":  # where torch can't clip, as some parameters are whole
        settings["gradient_clip_val"] = 0.1
    processes(**settings, watched=False)  # what a first fit leaves behind by itself, such as groups of the mesh
    without = processes(**settings, watched=False)
    watched = processes(**settings)
    for one, other in zip(without, watched, strict=True):
        assert all(np.array_equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
        assert one["generator"] == other["generator"]
        assert one["left"] == other["left"]
        assert one["groups"][1] - one["groups"][0] == other["groups"][1] - other["groups"][0]
    assert len(watched[0]["records"]) == 6


def test_rank_0_alone_writes_and_warns(processes):
    answers = processes(net="vanishing", steps=24, count=60, size=2)
    agree(answers)
    assert answers[0]["findings"][0]["code"] == "GW101"
    assert [len(answer["files"]) for answer in answers] == [1, 0]
    assert [len(answer["warnings"]) for answer in answers] == [len(answers[0]["findings"]), 0]
    (run,) = [read_run(f"{answer['folder']}/gradwatch/version_0") for answer in answers if answer["files"]]
    assert [finding.to_dict() for finding in run.findings] == answers[0]["findings"]
    assert evaluate(run) == run.findings
    assert run.info.world_size == 2
    assert run.info.strategy == "DDPStrategy"


def test_ranks_measure_the_same_steps_those_that_confirm_too(processes):
    answers = processes(net="vanishing", steps=24, watch={"every_n_steps": 1000}, size=2, count=60)
    steps = [[record["step"] for record in answer["records"]] for answer in answers]
    assert steps[0] == steps[1]
    assert set(steps[0]) > {0, 1, 2, 4, 8, 16}, "no step was measured to confirm a finding: the test shows nothing"


@pytest.mark.parametrize("lag", [0, 2])
def test_ranks_measure_the_same_steps_after_a_jump_and_name_the_same_layer(processes, lag):
    """Known with a lag, as on a device, the steps begin as much later, on both."""
    settings = {"net": "relu", "steps": 110, "count": 120, "size": 2, "watch": {"every_n_steps": 10}}
    answers = processes(rank_situations.fit_with_lag, lag=lag, kind=rank_situations.Jumps, **settings)
    agree(answers)
    steps = [record["step"] for record in answers[0]["records"]]
    assert [step for step in steps if 19 < step < 29] == []
    assert [step for step in range(30 + lag, 94) if step not in steps] == []
    begun = [finding["first_bad"] for finding in answers[0]["findings"] if finding["first_bad"]]
    assert {(each["layer"], each["metric"], each["last_good_step"], each["step"]) for each in begun} == {
        ("net.4", "weight_rms", 19, 29)
    }


def test_ranks_that_see_other_sites_have_one_record(processes):
    """Each has a branch of its own, and rank 1 a site that comes later."""
    answers = processes(strategy="ddp_find_unused_parameters_true", net="branching", steps=5)
    agree(answers)
    names = [site["name"] for site in answers[0]["info"]["sites"]]
    assert names == ["net:relu", "net:relu#2", "net:tanh", "net:relu#3", "net:softplus"]
    assert {layer["name"]: layer["used"] for layer in answers[0]["info"]["layers"]} == dict.fromkeys(
        ("net.first", "net.extra.0", "net.extra.1", "net.last"), True
    )
    first, last = answers[0]["records"][0], answers[0]["records"][-1]
    assert len(first["forward_rms"]) == 4
    assert not np.isnan(last["metrics"]["signal_norm"]).any()
    assert last["layer_state"] == [1, 1, 1, 1]
    feeds = {site["name"]: site["predecessors"] for site in answers[0]["info"]["sites"]}
    assert feeds["net:tanh"] == ("net:relu",)
    assert feeds["net:relu#3"] == ("net:tanh",)
    # What the second relu passes on is compared with what comes out of the first on both ranks, so it is no gain of one.
    assert np.isnan(last["metrics"]["weight_gain"][1])


def test_batches_of_another_size_on_each_rank_add_up(processes):
    """The loss that is minimised is the mean of the ranks' means, and a unit's observations are all there are."""
    answers = processes(kind=rank_situations.Unequal, size=16, watch={"rules": [window(20)]})
    agree(answers)
    seed()
    net = ranked.NETS["deep"]()
    data = batches(8, 16).dataset.tensors
    parts = [[each[32 + rank : 64 : 2][:rows] for each in data] for rank, rows in ((0, 16), (1, 4))]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(net(data[0][:32]), data[1][:32]).backward()
    optimizer.step()
    optimizer.zero_grad()
    zs = [net[0](x) for x, _ in parts]
    outs = [net[1:](z) for z in zs]
    loss = sum(torch.nn.functional.cross_entropy(out, y) for out, (_, y) in zip(outs, parts, strict=True)) / 2
    deltas = torch.autograd.grad(loss, zs, retain_graph=True)
    loss.backward()
    record = answers[0]["records"][1]
    assert record["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert record["metrics"]["signal_norm"][0] == pytest.approx(norm(deltas), rel=1e-5)
    assert record["metrics"]["grad_norm"][0] == pytest.approx(norm(each.grad for each in net[0].parameters()), rel=1e-5)
    dead = (torch.cat(zs) <= 0).all(0).double().mean().item()
    assert record["metrics"]["dead_fraction"][0] == pytest.approx(dead)
    assert record["metrics"]["inactive_share"][0] == pytest.approx((torch.cat(zs) <= 0).double().mean().item())


def test_a_gradient_scaler_is_taken_out(processes):
    (answer, _) = processes(rank_situations.fit_with_scaler, steps=2)
    for record, step in zip(answer["records"], reference("deep", steps=2, rows=16), strict=True):
        assert record["gradient_scale"] == 1024
        assert record["loss"] == pytest.approx(step["loss"], rel=1e-2)
        assert record["metrics"]["grad_norm"] == pytest.approx(
            [each["grad_norm"] for each in step["layers"].values()], rel=2e-2
        )
        assert record["metrics"]["signal_norm"] == pytest.approx(
            [each["signal_norm"] for each in step["sites"].values()], rel=2e-2
        )


def test_torch_has_no_synchronised_batch_norm_on_a_cpu(processes):
    """Else it would be among the nets here: what it exchanges is its own, in the training's group."""
    for answer in processes(rank_situations.sync_batch_norm):
        assert "SyncBatchNorm expected input tensor to be on" in answer["error"]


def test_one_collective_a_measured_step_and_none_between(processes):
    answers = processes(
        rank_situations.fit_counting_collectives, net="relu", steps=12, size=32, count=30, watch={"every_n_steps": 5}
    )
    assert answers[0]["collectives"] == answers[1]["collectives"]
    news, steady = answers[0]["collectives"][:3], answers[0]["collectives"][3:]
    assert news == [(0, "all_reduce"), (0, "all_gather"), (0, "all_reduce")]
    measured = [record["step"] for record in answers[0]["records"]]
    assert measured == [0, 1, 2, 4, 9]
    filling = [batch for batch, _ in steady if batch not in measured]
    assert steady == [(batch, "all_reduce") for batch in range(1, 12) if batch in {*measured, *filling}]
    assert filling


@pytest.mark.parametrize("lag", [0, 2])
def test_units_that_die_are_looked_at_in_the_same_further_steps_on_all_ranks(lag, processes):
    """Each rank sees 8 rows a batch: it's the windows over all of them that ask, also where they are exchanged later."""
    answers = processes(
        rank_situations.fit_with_lag,
        lag=lag,
        kind=rank_situations.Dies,
        net="relu",
        size=8,
        count=240,
        steps=115,
        counted=True,
        watch={"every_n_steps": 20, "ignore": ["GW1", "GW3", "GW4"]},
    )
    agree(answers)
    assert answers[0]["collectives"] == answers[1]["collectives"]
    found = {record["step"]: record["metrics"]["dead_fraction"][0] for record in answers[0]["records"]}
    assert found[59] < 0.2
    assert np.isnan(found[79])
    assert found[99] == 7 / 8
    exchanged = {batch for batch, _ in answers[0]["collectives"]}
    assert len([batch for batch in range(82, 99) if batch in exchanged]) > 10


def test_what_is_exchanged_later_is_the_same(processes):
    """On a device, numbers are put together two batches later; the records are those of an exchange at once."""
    later, once = (
        processes(rank_situations.fit_with_lag, lag=lag, steps=7, accumulate_grad_batches=2, gradient_clip_val=0.1)
        for lag in (2, 0)
    )
    agree(later)
    assert same(later[0]["records"], once[0]["records"])
    assert len(later[0]["records"]) == 7


def test_fsdp_keeps_its_parameters_whole_after_a_validation_pass(processes):
    settings = {"strategy": "fsdp2", "num_sanity_val_steps": 1, "val_check_interval": 2, "steps": 4}
    answers = processes(kind=rank_situations.Validated, watch={"rules": [window(16)]}, **settings)
    compare(answers[0], reference("deep", steps=4, rows=16))


def test_a_resumed_run_goes_on_where_it_was(processes, tmp_path):
    halves = processes(rank_situations.fit_in_two_parts, steps=20, folder=str(tmp_path / "halves"))
    whole = processes(net="vanishing", steps=20, count=2)
    agree(halves)
    for half, complete in zip(halves, whole, strict=True):
        fills = [record["window_fill"] for record in complete["records"]]
        assert [record["window_fill"] for record in half["records"]] == fills[10:]
        assert half["findings"] == complete["findings"]


def test_a_probe_measures_of_shards_what_one_process_can(processes):
    """Each process has a probe of its own in a plain loop: activations are its own, shards have no norm."""
    for answer in processes(rank_situations.probe_shards):
        record = answer["record"]
        assert np.isnan(
            [record["metrics"][name] for name in ("grad_norm", "grad_rms", "weight_rms", "update_ratio")]
        ).all()
        assert np.isnan(record["global_grad_norm"])
        assert record["layer_state"] == [0, 0, 0, 0]
        assert not np.isnan(record["metrics"]["signal_norm"]).any()
        assert answer["used"] == [True] * 4
        assert answer["roles"] == ["hidden"] * 3
        reason = "its parameters are sharded over processes, of which only this one is measured"
        assert answer["coverage"] == [(f"{place}", reason) for place in (0, 2, 4, 6)]


def test_gradients_that_are_unfinished_sums_are_absent(processes):
    answers = processes(
        strategy="tensor_parallel", net="positions", kind=rank_situations.HalfParallel, steps=2, optimizer="adam"
    )
    agree(answers)
    record = answers[0]["records"][-1]
    unread = np.isnan(record["metrics"]["grad_norm"]).tolist()
    names = [layer["name"] for layer in answers[0]["info"]["layers"]]
    partial = "its gradients are sums that the processes haven't added up yet (Partial)"
    assert [name for name, absent in zip(names, unread, strict=True) if absent] == ["net.3"]
    assert ("net.3", partial) in answers[0]["coverage"]
    assert record["layer_state"][names.index("net.3")] == 0
    assert np.isnan(record["global_grad_norm"])


@pytest.mark.parametrize(
    ("strategy", "kind", "net", "rows"),
    [("grid", rank_situations.Grid, "even", 16), ("hybrid", rank_situations.Hybrid, "deep", 32)],
    ids=["split by data and by layers", "each part on two ranks"],
)
def test_four_ranks_are_one_whole(strategy, kind, net, rows, four_processes):
    answers = four_processes.run(
        ranked.fit, strategy=strategy, kind=kind, net=net, devices=4, watch={"rules": [window(rows)]}
    )
    agree(answers[1:3])
    agree(answers[::3])
    compare(answers[0], reference(net, steps=4, rows=rows))


@pytest.fixture(scope="module")
def four_processes():
    running = Processes(4)
    yield running
    running.kill()
