"""What a run's description says of itself."""

from lightning_gradwatch.record.run_info import RunInfo
from lightning_gradwatch.record.step import LayerInfo, SiteInfo

INFO = RunInfo(
    layers=(
        LayerInfo("net.0", "Linear", ((8, 4), (8,)), 40, weight=True),
        LayerInfo("gain", "Parameter", ((),), 1, weight=False, used=None),
    ),
    sites=(
        SiteInfo("net.1", "relu", "hidden", 8),
        SiteInfo("net:tanh", "tanh", "gate", 8, predecessors=("net.1", "net:tanh")),
    ),
)


def test_a_layout_is_told_as_it_was_in_the_files_that_are_there_already():
    """What a description gained since, and an old one lacks, changes no old one's layout."""
    assert INFO.layout == "bc3229f2153c"
