"""What is measured around one activation call: its units before it runs, its output and its signal after."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import nn

from lightning_gradwatch.measure.model.call_site import CallSite, inside_function, locate
from lightning_gradwatch.measure.model.sites import Awaited, Roles
from lightning_gradwatch.measure.signal import Origin, SignalHooks, node_of
from lightning_gradwatch.measure.trace.axes import as_flattened, as_units, fitted
from lightning_gradwatch.measure.trace.gates import may_gate
from lightning_gradwatch.measure.trace.operands import tensors_in
from lightning_gradwatch.measure.trace.tensor_state import LOST, Ended, SiteCall, TensorState, TensorStates, unit_axis
from lightning_gradwatch.measure.trace.uncovered import (
    BY_HAND,
    FUSED,
    NO_TENSOR,
    UNTRAINED,
    Note,
    out_of_reach,
)
from lightning_gradwatch.measure.units.activations import OUTER, Call, composite
from lightning_gradwatch.measure.units.counting import counter
from lightning_gradwatch.measure.units.mask import Masks
from lightning_gradwatch.record.activations import COMPOSITES, RELU, look_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from lightning_gradwatch.measure.model.call_site import ModuleNames
    from lightning_gradwatch.measure.model.path import Layer, Site
    from lightning_gradwatch.measure.model.sites import Sites
    from lightning_gradwatch.measure.trace.connections import Connections
    from lightning_gradwatch.measure.trace.formulas import Known
    from lightning_gradwatch.measure.trace.handwritten import HandWritten
    from lightning_gradwatch.measure.trace.tensor_state import Axis, Formula, Start
    from lightning_gradwatch.measure.trace.uncovered import Uncovered
    from lightning_gradwatch.measure.units.mask import Samples
    from lightning_gradwatch.measure.units.site_stats import Collected, SiteStatistics
    from lightning_gradwatch.record.activations import Inner
    from lightning_gradwatch.record.zones import Zones

_SOFTPLUS = look_up("softplus").usual


class Activations:
    """Measures the activation calls of one step, pass by pass (a pass is the forward of one micro-batch)."""

    def __init__(
        self,
        *,
        sites: Sites,
        collected: Collected,
        hooks: SignalHooks,
        connections: Connections,
        tags: TensorStates,
        names: ModuleNames,
        unseen: Uncovered,
    ) -> None:
        self.hooks = hooks
        self._last_layer: Layer | None = None
        self.roles = Roles()
        self._unfinished: list[tuple[Site, Start]] = []
        """New sites whose argument is a function that isn't known, with its first step."""
        self._awaited: list[Awaited] = []
        """Functions by hand that are named if a layer takes what they make."""
        self._pieces: dict[Site, int] = {}
        """Which of a layer's units a site's first call in this pass took."""
        self._unseen = unseen
        self.masks = Masks(None)
        """Which positions of this pass are samples."""
        self.by_grad = False
        """Whether the program takes gradients of parameters by ``autograd.grad``."""
        self._connections = connections
        self._sites = sites
        self._collected = collected
        self._tags = tags
        self._names = names

    def end_pass(self) -> None:
        """Close a pass: new sites get their roles and names, and nothing of the user's graph is kept."""
        for site in self._sites.settle(self.roles):
            self._collected.sites.pop(site, None)
        for site, start in self._unfinished:
            if not site.part and site.composite is None and site.role != "output":
                self.leaves_out_at(start)
        self._unfinished.clear()
        for each in self._awaited:
            if self.roles.of(each) != "output":
                self._unseen.call(each.place, each.function, each.reason)
        self._awaited.clear()
        self.roles = Roles()
        self._pieces.clear()
        self._tags.clear()
        self._collected.end_pass()

    def before(self, call: Call) -> SiteCall | None:
        """Count the units of a call's argument before it runs, which may be in place; None for one left out."""
        if why := out_of_reach(call.z):
            self._unseen.call(locate(self._names, above=3), call.function, why)
            return None
        # A function with a backward of its own runs its forward without gradients, trained or not.
        alone = "" if call.z.requires_grad and torch.is_grad_enabled() else inside_function() or "untrained"
        if alone == "untrained":
            self._unseen.call(locate(self._names, above=3), call.function, UNTRAINED)
            return None
        tag = self._tags.get(call.z)
        seen = self._seen(call, locate(self._names, above=3), tag, alone)
        inner = seen.inner
        seen.origin = Origin(call.z)
        if seen.formula is not None and seen.formula.start.named and seen.site.role is None:
            self._unfinished.append((seen.site, seen.formula.start))
        if call.zones.name == "softplus":
            seen.usual = call.zones is _SOFTPLUS
        if tag is not None and inner is not None and inner.site.function == "softplus":
            seen.of = tag.of
        else:
            seen.of = self._tags.root_of(call.z, tag, seen.origin)
        return seen

    def are_features(self, z: Tensor) -> bool:
        """Whether some layer has a part in a tensor, which is trained."""
        if z.dim() < 2 or not (z.requires_grad and torch.is_grad_enabled()):
            return False
        tag = self._tags.get(z)
        return tag is not None and tag.layer is not None and not tag.weights_only

    def _seen(
        self, call: Call, location: CallSite, tag: TensorState | None, alone: Literal["", "checkpoint", "function"]
    ) -> SiteCall:
        """Count the units of a call's argument, of which the tag is known."""
        z = call.z
        where = unit_axis(z, tag)
        zones, z, axis = _along_one_axis(call.zones, z, where)
        counts = counter(zones, z.dtype, z.dim(), axis)
        site = self._site(location, call, None if tag is None else tag.layer, counts.units(z))
        if call.zones.fractions and (not zones.fractions or self._takes_turns(site, tag)):
            self._unseen.scattered.add(site)
        sums = self._collected.of(site)
        if alone:
            self._unseen.alone[site] = alone
        seen = SiteCall(site, sums, where, tag, in_place=call.in_place)
        seen.height = call.zones.height
        seen.centred = site.function == "relu6" and tag is not None and 2 * tag.shift == seen.height
        seen.samples = self._samples(site, z, axis)
        if not site.part:
            if site.composite is not None:
                counts = counter(site_zones(site, judged=counts.judges), z.dtype, z.dim(), axis)
            seen.columns = tag is not None and tag.columns
            rectified = call.zones is RELU and not self.masks.given
            seen.norm = sums.count(counts, z, axis, seen.samples, columns=seen.columns, rectified=rectified)
            if site.role is None and site.composite is None:
                self._count_as_inner_step(seen, z, axis, judged=counts.judges)
        return seen

    def _takes_turns(self, site: Site, tag: TensorState | None) -> bool:
        """Whether a site's calls in a pass take the units of a layer piece by piece, and so have other units each time."""
        if tag is not None and tag.layer is not None and self._pieces.setdefault(site, tag.piece) != tag.piece:
            self._sites.take_apart(site)
        return site.in_pieces

    def written_out(self, formula: Formula, known: Known, output: Tensor) -> None:
        """Measure a function that was written out in arithmetic, at its last step."""
        start = formula.start
        assert start.argument is not None
        share = known.scale / start.factor
        z = start.argument if share == 1 else start.argument * share
        seen = self._seen(Call(known.zones, z, in_place=False), locate(self._names, above=5), start.tag, "")
        if seen.site.role is None:
            seen.site.supposed = not start.direct
        seen.of = seen.origin = formula.of
        self.after(seen, output)

    def are_pieces(self, calls: Sequence[SiteCall], result: Tensor) -> None:
        """Leave out calls that make another function of what they are given, and name it if a layer takes it."""
        self.are_steps(calls)
        self.may_leave_out(calls[0].site.function, BY_HAND, result)

    def may_leave_out(self, function: str, reason: str, result: Tensor) -> None:
        """Note what a function by hand has made, that is named with a reason once it shows to be the net's: no loss."""
        place = self.place()
        if not self._unseen.knows(place, function):
            awaited = Awaited(function, reason, place)
            self._awaited.append(awaited)
            self.roles.called(awaited, result.grad_fn)

    def are_steps(self, calls: Iterable[SiteCall]) -> None:
        """Leave out calls of new sites that turned out to be steps of another function."""
        for call in calls:
            self._sites.drop(call.site)
            if call.site.part:
                self._collected.sites.pop(call.site, None)
                for handle in call.handles:
                    handle.remove()

    def place(self) -> CallSite:
        """Return where the call is that is looked at."""
        return locate(self._names, above=1)

    def are_of_layer(self, features: Tensor) -> bool:
        """Whether a layer has made a tensor, with nothing but constants, weights and moves of axes between."""
        return self._connections.made_by_layer(features.grad_fn)

    def are_of_two(self, features: Tensor) -> bool:
        """Whether they are the sum or the difference of what two layers or activation functions have made."""
        return self._connections.made_by_two(features.grad_fn)

    def leaves_out_at(self, start: Start) -> None:
        """Note that a layer takes what was made of a layer's output: whatever function that is, it isn't known."""
        self._unseen.call(start.place, start.name, BY_HAND)

    def _count_as_inner_step(self, seen: SiteCall, z: Tensor, axis: int, *, judged: bool) -> None:
        """Count a new site's call by what it may turn out to compute: by then its argument may have been overwritten."""
        for zones in OUTER.get(seen.site.function, ()):
            counts = counter(zones if judged else zones._replace(fractions=False), z.dtype, z.dim(), axis)
            supposed = self._collected.supposed(seen.site, zones.name)
            supposed.count(counts, z, axis, seen.samples, columns=seen.columns)

    def after(self, seen: SiteCall, output: Tensor) -> None:
        """Measure a call's output and ask for its signal."""
        site = seen.site
        origin, seen.origin = seen.origin, None
        tag = TensorState(output, seen.axis, seen.layer)
        tag.call, tag.of, tag.columns = seen, seen.of, seen.columns
        tag.gate = (seen,) if may_gate(site) else ()
        if seen.piece:
            tag.piece = seen.piece
        self._tags.put(output, tag)
        if site.composite is None and not site.part and origin is not None:
            if seen.norm is None:
                self._add_output(seen.sums, output, seen.axis)
            else:
                seen.sums.add_norm_of_output(seen.norm, output.numel())
            node = node_of(output, in_place=seen.in_place)
            if node is origin.node:
                node = None  # none was made: without gradients, an in-place call leaves its argument the node it had
            turn = seen.sums.turn()
            seen.handles = self.hooks.watch(seen.sums, output, node, origin, turn=turn)
            self._connections.called(site, origin, node, turn=turn)
            if site.role is None:
                self.roles.called(site, node)

    def gives_no_tensor(self, seen: SiteCall) -> None:
        """Leave out a call that returned something else than one tensor."""
        self._sites.drop(seen.site)
        self._collected.sites.pop(seen.site, None)
        self._unseen.call(locate(self._names, above=4), seen.site.function, NO_TENSOR)

    def parameterised(self, output: Tensor, layers: Sequence[Layer]) -> None:
        """Note the output of an operation that takes parameters of some layers."""
        self._last_layer = layers[0] if layers else None
        self._connections.uses(layers, output.grad_fn)
        if self._sites.unsettled or self._awaited:
            self.roles.parameterised(output.grad_fn)

    def takes_gradients(self, of: object) -> None:
        """Note that ``autograd.grad`` is asked for gradients of parameters."""
        tensors = tensors_in((of,))
        self.by_grad = self.by_grad or any(isinstance(each, nn.Parameter) for each in tensors)

    def gates(self, site: Site) -> None:
        """Note that a site's output multiplies another tensor."""
        if site.role is None:
            self.roles.gates(site)
        else:
            self._sites.correct(site, "gate")

    def of_weights(self, weight: Tensor) -> None:
        """Note what was made of parameters alone."""
        if weight.grad_fn is not None:
            self._connections.of_weights(weight.grad_fn)

    def leaves_out(self, function: str, reason: str) -> None:
        """Note a call that may be an activation function, and isn't known to be one."""
        self._unseen.call(self.place(), function, reason)

    def hides(self, function: str, *, trained: bool) -> None:
        """Note a torch call that holds activation functions of its own, out of sight."""
        reason = FUSED[function] if trained or inside_function() else UNTRAINED
        self._unseen.call(locate(self._names, above=3), function, reason)

    def runs_unseen(self, module: nn.Module) -> None:
        """Note a module of torch's that runs out of sight, as nothing of it is trained."""
        location = CallSite(self._names.of(module) or "", leaf=False, place=None, inner=None)
        inside = sum(isinstance(each, (nn.TransformerEncoderLayer, nn.MultiheadAttention)) for each in module.modules())
        self._unseen.note(location, Note(location.module, UNTRAINED, inside, location))

    def complete(self, done: HandWritten, output: Tensor, axis: Axis, layer: Layer | None) -> None:
        """Measure a function written by hand, at its last step."""
        if done.call is None:
            self._complete_without_site(done, output, axis, layer)
            return
        site = done.call.site
        if site.composite != done.function:
            self._rename(site, done)
        done.call.ended = self._end(site, self._collected.of(site), done, output, axis)

    def _complete_without_site(self, done: HandWritten, output: Tensor, axis: Axis, layer: Layer | None) -> None:
        assert done.u is not None
        call = composite(done.function, "erf", done.u)
        zones, u, along = _along_one_axis(call.zones, done.u, axis)
        counts = counter(zones, u.dtype, u.dim(), along)
        site = self._site(locate(self._names, above=5), call, layer, counts.units(u))
        if not output.requires_grad:
            return
        if not zones.fractions:
            self._unseen.scattered.add(site)
        sums = self._collected.of(site)
        sums.count(counts, u, along, self._samples(site, u, along))
        self._end(site, sums, done, output, axis)

    def _end(self, site: Site, sums: SiteStatistics, done: HandWritten, output: Tensor, axis: Axis) -> Ended:
        ended = Ended(site, sums, done.root, axis, done.missing)
        self._read(ended, output)
        tag = self._tags.get(output)
        if tag is not None and not math.isclose(done.missing, 1.0, rel_tol=1e-3):
            tag.ended = ended
        return ended

    def extend(self, ended: Ended, output: Tensor) -> None:
        """Take what a constant has made of a hand-written function's output for the output."""
        ended.sums.outputs_back_to(ended.before)
        for handle in ended.handles:
            handle.remove()
        self._connections.forget(ended.node)
        self._read(ended, output)

    def _read(self, ended: Ended, output: Tensor) -> None:
        """Measure the output of a hand-written function, and ask for its signal."""
        site, sums, node = ended.site, ended.sums, output.grad_fn
        ended.before, ended.node = sums.outputs(), node
        self._add_output(sums, output, ended.axis)
        turn = sums.turn()
        ended.handles = self.hooks.watch(sums, output, node, ended.root, turn=turn)
        self._connections.called(site, ended.root, node, turn=turn, whole=True)
        if site.role is None:
            self.roles.called(site, node)

    def _rename(self, site: Site, done: HandWritten) -> None:
        """Turn a new site into what it computes, counted by that function's intervals."""
        assert done.call is not None
        site.composite = done.function
        before = done.call.ended
        for handle in (*done.call.handles, *(() if before is None else before.handles)):
            handle.remove()
        if before is not None:
            self._connections.forget(before.node)
        self._collected.sites[site] = self._collected.supposed(site, done.function)
        inner = done.call.inner
        if done.function == "mish" and inner is not None:
            self._sites.drop(inner.site)
            self._collected.sites.pop(inner.site, None)
            for handle in inner.handles:
                handle.remove()

    def _site(self, location: CallSite, call: Call, layer: Layer | None, units: int) -> Site:
        site = self._sites.find(location, call.zones.name, layer, units, before=self._last_layer)
        if call.zones.supposed and site.role is None:
            site.supposed = True
        return site

    def _add_output(self, sums: SiteStatistics, output: Tensor, axis: Axis) -> None:
        if self.masks.given:
            output, along = as_units(output, fitted(axis, output.shape))
            sums.add_output(output, along, self._samples(sums.site, output, along))
        else:
            sums.add_output(output, 0)

    def _samples(self, site: Site, tensor: Tensor, axis: int) -> Samples | None:
        if not self.masks.given or not self.masks.meant_for(site.location.module):
            return None
        samples = self.masks.of(site.location.module, tensor, axis)
        if samples is None:
            self._unseen.unmasked.add(site)
        return samples


def site_zones(site: Site, *, judged: bool = True) -> Zones:
    """Return the intervals of the function that a hand-written site computes, of its inner function's argument."""
    name = site.composite or site.function
    zones = COMPOSITES.get((name, cast("Inner", site.function))) or COMPOSITES[name, "erf"]
    return zones if judged else zones._replace(fractions=False)


def _along_one_axis(zones: Zones, z: Tensor, where: Axis) -> tuple[Zones, Tensor, int]:
    """Return intervals, and a tensor whose units lie along one axis; without fractions where they can't be told apart."""
    if not isinstance(where, int):
        where = as_flattened(where)
    if isinstance(where, int):
        return zones, z, where
    z = z.detach()
    if (dim := zones.gate_dim) is not None:
        half = z.shape[dim] // 2
        zones, z = zones._replace(gate_dim=None), z.narrow(dim, half, half)
    where = fitted(where, z.shape)
    if where == LOST:
        return zones._replace(fractions=False), z, z.dim() - 1
    return zones, *as_units(z, where)
