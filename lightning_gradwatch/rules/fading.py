"""Why a signal fades from layer to layer, and what restores it, told from the activation functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_gradwatch.findings import Action, Remedy
from lightning_gradwatch.rules.functions import Function, look_up
from lightning_gradwatch.rules.wording import counted, listed, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_gradwatch.record import SiteInfo

_BOUNDS = {0.25: "1/4", 1 / 6: "1/6"}
_MOSTLY_SATURATED = 0.5
_DEEP_SITES = 20


def fading_cause(sites: Sequence[SiteInfo], gain: float, saturated: float) -> str:
    """Say which function, or which weights, take the signal away; `gain` is the mean factor from site to site."""
    functions = _functions(sites)
    measured = f"here each layer passes back {number(gain)} of it on average"
    if len(functions) > 1:
        names = ", ".join(function.module for function in functions)
        return f"The {len(sites)} hidden sites use several functions ({names}); {measured}."
    function = functions[0]
    whose = f"All {counted(len(sites), 'hidden site')} are {function.module}"
    if function.steepest < 1:
        bound = _BOUNDS.get(function.steepest, number(function.steepest))
        return (
            f"{whose}, whose derivative is at most {bound}: apart from its weights, a layer can pass back at most "
            f"{number(function.steepest)} of the signal; {measured}."
        )
    if saturated >= _MOSTLY_SATURATED:
        return (
            f"{whose}, and {percent(saturated)} of the units of the median site are saturated (see GW202), where the "
            f"derivative is close to 0; {measured}."
        )
    return (
        f"{whose}, whose derivative reaches {number(function.steepest)}, so the function alone need not weaken the "
        f"signal; {measured}: most likely the weights are too small for it."
    )


def fading_remedy(sites: Sequence[SiteInfo], layers: Sequence[str], saturated: float) -> Remedy:
    """Say what to change: the function where it is to blame, the initialisation, skip connections in deep nets."""
    to_blame = {name for name in {site.function for site in sites} if _is_to_blame(look_up(name), saturated)}
    blamed = [site for site in sites if site.function in to_blame]
    keeps_two_sided = bool(sites) and not blamed and all(function.two_sided for function in _functions(sites))
    method = "xavier_normal_" if keeps_two_sided else "kaiming_normal_"
    actions, said = [], []
    if blamed:
        names = tuple(site.name for site in blamed)
        spelled = " and ".join(function.module for function in _functions(blamed))
        actions.append(Action("replace_activation", names, (("with", "ReLU"),)))
        said.append(f"replace {spelled} at {listed(names, 'site')} by ReLU, LeakyReLU or ELU")
    actions.append(Action("initialize", tuple(layers), (("method", method),)))
    said.append(f"initialise the weights of {listed(layers)} with {method}")
    if saturated >= _MOSTLY_SATURATED:
        actions.append(Action("normalize_inputs"))
        said.append("scale the inputs to mean 0 and variance 1")
    text = f"{'; '.join(said)}."
    if len(sites) >= _DEEP_SITES:
        actions.append(Action("add_skip_connections", tuple(site.name for site in sites)))
        text += f" At {len(sites)} hidden sites, also add skip connections or normalisation layers."
    else:
        text += " Skip connections and normalisation layers help too."
    return Remedy(text=text[0].upper() + text[1:], actions=tuple(actions))


def _functions(sites: Sequence[SiteInfo]) -> list[Function]:
    return list(dict.fromkeys(look_up(name) for name in dict.fromkeys(site.function for site in sites)))


def _is_to_blame(function: Function, saturated: float) -> bool:
    return function.steepest < 1 or (function.two_sided and saturated >= _MOSTLY_SATURATED)
