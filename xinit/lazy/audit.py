"""``audit()``: what of a model has no values."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from xinit.lazy.targets import hidden_in, targets_of
from xinit.parameters.names import canonical_name
from xinit.parameters.sites import known_unwritten
from xinit.parameters.table import fold, table

HIDDEN = "deferred, of a module in a list or the like, which is no part of the model"


class Audit(list[tuple[str, str]]):
    """Names of parameters and buffers, and what is wrong with each; printed, a table, of one line for equal layers."""

    def __str__(self) -> str:
        if not self:
            return "every parameter and buffer has its values"
        return table(("count", "name", "problem"), fold(self))


def audit(model: nn.Module) -> Audit:
    """The parameters and buffers of a model that have no values: without memory, or never written.

    Returns:
        a list of names and problems, which prints as a table; it is empty, and so false, if all is well.

    Raises:
        TypeError: if ``model`` is not a module.

    Example:
        >>> import torch, xinit
        >>> with xinit.deferred():
        ...     model = torch.nn.Linear(100, 200, bias=False)
        >>> print(xinit.audit(model))
        count  name    problem
            1  weight  deferred: on the meta device until materialize_
        >>> xinit.audit(xinit.materialize_(model))
        []
    """
    targets, _, unknown = targets_of(model, "audit")
    problems = dict(unknown)
    for target in targets:
        written = "deferred: on the meta device until materialize_"
        problems[target.name] = written if target.written() else "deferred, but never written by the constructor"
    rows = Audit()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        canonical = canonical_name(name)
        if canonical in problems:
            rows.append((canonical, problems[canonical]))
        elif is_lazy(tensor):
            rows.append((canonical, "lazy: without a shape until the model is called with an input"))
        elif known_unwritten(tensor):
            rows.append((canonical, "never written"))
    rows += [(name, HIDDEN) for name in hidden_in(model)]
    return rows
