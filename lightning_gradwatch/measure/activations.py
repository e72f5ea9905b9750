"""What is measured around one activation call: its units before it runs, its output and its signal after."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from lightning_gradwatch.measure.collect import SiteSums
from lightning_gradwatch.measure.composites import Composite, SiteCall, reference
from lightning_gradwatch.measure.counting import count
from lightning_gradwatch.measure.coverage import OPAQUE
from lightning_gradwatch.measure.functions import COMPOSITES, Call, Inner, Zones, composite
from lightning_gradwatch.measure.location import in_reentrant_checkpoint, locate
from lightning_gradwatch.measure.signal import Origin, SignalHooks
from lightning_gradwatch.measure.sites import Roles
from lightning_gradwatch.measure.tags import Tag, Tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from lightning_gradwatch.measure.collect import Collected
    from lightning_gradwatch.measure.layers import Layer
    from lightning_gradwatch.measure.location import Location
    from lightning_gradwatch.measure.sites import Site, Sites


class Seen(NamedTuple):
    """What is remembered of an activation call while it runs."""

    site: Site
    sums: SiteSums
    tag: Tag
    """The output's, but for the output."""
    origin: Origin
    argument: Tensor | None


class Activations:
    """Measures the activation calls of one step, pass by pass (a pass is the forward of one micro-batch)."""

    def __init__(
        self, *, sites: Sites, collected: Collected, hooks: SignalHooks, tags: Tags, names: Mapping[int, str]
    ) -> None:
        self.hooks = hooks
        self.roles = Roles()
        self.opaque: dict[str, str] = {}
        """Why a module's inner activation functions can't be seen, by the module's name."""
        self._sites = sites
        self._collected = collected
        self._tags = tags
        self._names = names

    def end_pass(self) -> None:
        """Close a pass: new sites get their roles and names, and nothing of the user's graph is kept."""
        self._sites.settle(self.roles)
        self.roles = Roles()
        self._tags.clear()
        self._collected.end_pass()

    def before(self, call: Call) -> Seen | None:
        """Count the units of a call's argument before it runs, which may be in place; None for one left out."""
        if not call.z.requires_grad and not in_reentrant_checkpoint():
            return None  # nothing before it is being trained
        location = locate(self._names, above=3)
        tag = self._tags.get(call.z)
        axis = self._tags.unit_axis(call.z)
        layer = tag.layer if tag is not None else None
        site = self._site(location, call, layer, axis)
        sums = SiteSums() if site.part else self._collected.of(site)
        if not site.part:
            self._count(site, sums, call, axis)
        output = Tag(call.z, axis, layer)
        inner = tag.call if tag is not None else None
        output.call = SiteCall(site, sums, inner=inner)
        within = tag is not None and inner is not None and inner.site.function == "softplus"
        output.of = tag.of if tag is not None and within else self._tags.root(call.z)
        argument = call.z.detach() if site.role is None and not call.in_place else None
        return Seen(site, sums, output, Origin(call.z), argument)

    def after(self, seen: Seen, output: Tensor) -> None:
        """Measure a call's output and ask for its signal."""
        tag, call = seen.tag, seen.tag.call
        tag.ref = reference(output)
        if call is not None:
            call.argument = seen.argument
            if seen.site.composite is None and not seen.site.part:
                seen.sums.output(output)
                call.handles = self.hooks.watch(seen.sums, output, seen.origin)
                if seen.site.role is None:
                    self.roles.called(seen.site, output.grad_fn)
        self._tags.put(output, tag)

    def parameterised(self, output: Tensor) -> None:
        """Note the output of an operation that takes a layer's parameter."""
        if self._sites.unsettled:
            self.roles.parameterised(output.grad_fn)

    def hides(self, function: str) -> None:
        """Note a torch call that holds activation functions of its own, out of sight."""
        module = locate(self._names, above=4).module
        self.opaque.setdefault(module, OPAQUE[function])

    def complete(self, done: Composite, output: Tensor, axis: int, layer: Layer | None) -> None:
        """Measure a function written by hand, at its last step."""
        if done.call is None:
            self._complete_without_site(done, output, axis, layer)
            return
        site, sums = done.call.site, done.call.sums
        if site.composite is None:
            sums = self._rename(site, done)
        sums.output(output)
        self.hooks.watch(sums, output, Origin(done.root))
        if site.role is None:
            self.roles.called(site, output.grad_fn)

    def _complete_without_site(self, done: Composite, output: Tensor, axis: int, layer: Layer | None) -> None:
        assert done.u is not None
        call = composite(done.function, "erf", done.u)
        site = self._site(locate(self._names, above=4), call, layer, axis)
        if not output.requires_grad:
            return
        sums = self._collected.of(site)
        self._count(site, sums, call, axis)
        sums.output(output)
        self.hooks.watch(sums, output, Origin(done.root))
        if site.role is None:
            self.roles.called(site, output.grad_fn)

    def _rename(self, site: Site, done: Composite) -> SiteSums:
        """Turn a new site into what it computes, and count its first call again by that function's intervals."""
        assert done.call is not None
        site.composite = done.function
        for handle in done.call.handles:
            handle.remove()
        sums = self._collected.sites[site] = SiteSums()
        argument = done.call.argument
        if argument is not None:
            self._count(site, sums, Call(site_zones(site), argument, in_place=False), self._tags.unit_axis(argument))
        inner = done.call.inner
        if done.function == "mish" and inner is not None:
            self._sites.drop(inner.site)
            self._collected.sites.pop(inner.site, None)
            for handle in inner.handles:
                handle.remove()
        return sums

    def _site(self, location: Location, call: Call, layer: Layer | None, axis: int) -> Site:
        return self._sites.find(location, call.function, layer, _units(call, axis))

    def _count(self, site: Site, sums: SiteSums, call: Call, axis: int) -> None:
        if site.composite is not None:
            call = call._replace(zones=site_zones(site))
        counts = count(call, call.z, axis)
        if counts is not None:
            sums.count(counts, call.z.shape[0] if call.z.dim() > 1 and axis > 0 else 1)


def _units(call: Call, axis: int) -> int:
    """Return the number of units of a call; 0 for a function without unit fractions."""
    zones, z = call.zones, call.z
    if not zones.fractions:
        return 0
    if not z.dim():
        return 1
    halved = zones.gate_dim is not None and zones.gate_dim % z.dim() == axis
    return z.shape[axis] // 2 if halved else z.shape[axis]


def site_zones(site: Site) -> Zones:
    """Return the intervals of the function that a hand-written site computes, of its inner function's argument."""
    inner = cast("Inner", site.function) if site.function in ("sigmoid", "tanh") else "erf"
    return COMPOSITES[site.composite or site.function, inner]
