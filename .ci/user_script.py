"""What a user writes, for type checkers: `user_types` runs them over it. Each mistake in it has to be seen."""

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_gradwatch import (
    Finding,
    GradWatch,
    Probe,
    Run,
    RunInfo,
    StepRecord,
    VanishingGradient,
    VanishingGradientWarning,
    check_training,
    evaluate,
    read_run,
)

watch = GradWatch(every_n_steps=5, rules=[VanishingGradient(ratio=1e-2)], ignore=("GW202",), fail_on="error")
trainer = pl.Trainer(callbacks=[watch])
alone = pl.Trainer(callbacks=watch)
callbacks: list[pl.Callback] = [GradWatch(), watch]
found: tuple[Finding, ...] = watch.findings
texts: list[str] = [finding.remedy.text for finding in found]

net = nn.Linear(3, 3)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
records: list[StepRecord] = []
with Probe(net, optimizer) as probe:
    net(torch.randn(2, 3)).sum().backward()
    optimizer.step()
records.append(probe.record)
info: RunInfo = probe.info
largest: float = float(probe.record.metrics["grad_norm"].max())

run: Run = read_run("lightning_logs/version_0")
steps, values = run.series("grad_norm")
last: int = int(steps[-1])
judged: tuple[Finding, ...] = (
    *evaluate(run),
    *evaluate(records, info=info),
    *evaluate(Run.from_records(records, info)),
)
report = check_training(pl.LightningModule(), max_steps=4, fail_on="warning")
fine: bool = report.ok
kind: type[UserWarning] = VanishingGradientWarning

GradWatch(fail_on="warn")  # type: ignore[arg-type]
GradWatch(every_n_step=5)  # type: ignore[call-arg]
GradWatch(rules=[VanishingGradient])  # type: ignore[list-item]
evaluate(records, info="info")  # type: ignore[arg-type]
