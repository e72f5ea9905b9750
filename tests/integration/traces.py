"""Everything a monitor could have put somewhere, so that two fits can be compared by it."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from integration.nets import MODULE_HOOKS
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import _len_torch_dispatch_stack

OPTIMIZER_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
GLOBAL_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
)


def traces(run, module):
    """Return everything a monitor could have put somewhere, by where."""
    found = {
        "modes": (_len_torch_function_stack(), _len_torch_dispatch_stack(), torch.is_grad_enabled()),
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True) is not None,
        "stance": torch._dynamo.eval_frame._stance.stance if "torch._dynamo" in __import__("sys").modules else None,
        "global hooks": [len(getattr(torch.nn.modules.module, kind)) for kind in GLOBAL_HOOKS],
        "strategy": sorted(vars(run.strategy)),
        "trainer": sorted(vars(run)),
    }
    for name, child in module.named_modules():
        found[f"module {name}"] = sorted(vars(child))
        found[f"hooks of {name}"] = [len(getattr(child, kind)) for kind in MODULE_HOOKS]
    for name, parameter in module.named_parameters():
        found[f"parameter {name}"] = (
            sorted(vars(parameter)),
            bool(parameter._backward_hooks),
            bool(parameter._post_accumulate_grad_hooks),
        )
        found[f"gradient {name}"] = sorted(vars(parameter.grad)) if parameter.grad is not None else []
    for place, optimizer in enumerate(run.optimizers):
        found[f"optimizer {place}"] = sorted(vars(optimizer))
        found[f"hooks of optimizer {place}"] = [len(getattr(optimizer, kind)) for kind in OPTIMIZER_HOOKS]
    return found


class TracesEachBatch(pl.Callback):
    """Looks at the start of each batch; before the monitor, where it stands before it in the Trainer's list."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, *args):
        self.seen.append(traces(trainer, module))
