"""Recipes: which distribution each parameter of a model is drawn from, as :func:`xinit.init_` and :func:`xinit.plan` take them.

A recipe is any of

- a mapping from patterns to values, of which the first that matches a parameter decides. A pattern is a glob on the
  parameter's full name (``"*.bias"`` also matches a ``bias`` at the top), a module type (the parameters that a module of that
  type, or of a subclass, owns itself), or a predicate ``(name, parameter, module) -> bool``. A value is a
  :class:`xinit.Distribution`, :func:`xinit.blocks`, :func:`xinit.rows`, or a function
  ``(name, parameter, module)`` that gives one, or None to leave the parameter to the patterns that follow;
- the name of one of the functions below, for what it returns by default: "torch", "xavier", "kaiming", "gpt2",
  "llama", "vit", "mup";
- a function from the model to a recipe, for what depends on the whole model, such as the number of layers;
- a sequence of recipes, of which the earlier go first: ``[{"lm_head.weight": xinit.zeros()}, "llama"]``.

Under every recipe the ``padding_idx`` row of an ``nn.Embedding`` is zero.

The functions below know what architectures have in common: matrices, biases and norms. What they would give a parameter is
held against what the model itself says, by its ``reset_parameters``, ``_init_weights`` or constructor: one that these make
constant, or compute, such as the weight of a norm that multiplies by 1 + w, a zero output layer, or ``A_log`` of a state space
model, is an error that names both values and the line that decides. So is a parameter of no module of ``torch.nn`` whose name
says nothing, and a norm of another library of which it cannot be told whether it normalises at 1. Of random numbers by other
random numbers a recipe says nothing: that is what it is for. A pattern of your own is never questioned.

Of a model that comes out of ``to_empty``, and where nothing has written to parameters since they were made, constructors are run
again, without memory, if they are known: those of transformers, timm and diffusers, and others all of whose arguments are
attributes of the same names, with or without an underscore before. ``init_`` names the other classes in a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any, Union

from torch import nn

from xinit._torch import ConvNd
from xinit.distributions import Distribution, What, normal, trunc_normal, variance_scaling, xavier_uniform, zeros
from xinit.parameters.names import canonical_name, every_module
from xinit.parameters.sites import Pattern, Predicate, depths, predicate
from xinit.recipes.following import gains
from xinit.recipes.torch_modules import resets_as, rule_of, scale_or_shift
from xinit.scaling import Nonlinearity, ScalingDistribution

__all__ = ["gpt2", "kaiming", "llama", "mup", "torch", "vit", "xavier"]

Value = What | Callable[[str, nn.Parameter, nn.Module], What | None]
Rules = Mapping[Any, Value]
Recipe = Union[str, Rules, Callable[[nn.Module], "Recipe"], Sequence["Recipe"]]  # noqa: UP007 (it names itself)


class Known(dict[Any, Value]):
    """The rules of a recipe of this file: general ones, and so to be held against what the model itself says."""

    def __init__(self, recipe: str, rules: Rules) -> None:
        super().__init__(rules)
        self.recipe = recipe


def rules_of(recipe: Recipe, model: nn.Module, op: str) -> list[tuple[Pattern, Value, str]]:
    """The recipe's patterns and values for this model, in the order in which they are tried, with the name of the built-in
    recipe that they are from, or ""."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"{op}: unknown recipe {recipe!r}; the known ones are {', '.join(RECIPES)}")
        return rules_of(RECIPES[recipe](), model, op)
    if isinstance(recipe, Mapping):
        source = recipe.recipe if isinstance(recipe, Known) else ""
        if not source:
            for pattern, value in recipe.items():
                _check_called(pattern, value, op)
        return [(pattern, value, source) for pattern, value in recipe.items()]
    if isinstance(recipe, Sequence):
        return [rule for part in recipe for rule in rules_of(part, model, op)]
    function: Any = recipe
    if function in RECIPES.values():  # itself, not what it returns
        return rules_of(function(), model, op)
    if callable(recipe) and not isinstance(recipe, type | nn.Module):
        return rules_of(recipe(model), model, op)
    raise TypeError(
        f"{op}: a recipe must be a name, a mapping from patterns to distributions, a function from the model to such a "
        f"mapping, or a sequence of recipes, but found {recipe!r}"
    )


def _check_called(pattern: object, value: object, op: str) -> None:
    """Of a function in a recipe, whether it is one that gives distributions, not ``xinit.zeros`` itself, or ``zeros_``."""
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", ".")
    if (
        "." in name
        or name.startswith("_")
        or isinstance(value, type)
        or not (module == "torch.nn.init" or f"{module}.".startswith("xinit."))
    ):
        return
    raise TypeError(
        f"{op}: the recipe's {pattern!r} has the function {name}, which "
        + ("fills a tensor" if name.endswith("_") else "is not called")
        + f", where a distribution belongs, such as xinit.{name.rstrip('_')}(...)"
    )


def torch() -> Recipe:
    """What the modules of torch.nn ask for themselves: each one's ``reset_parameters``, as a distribution.

    For every module of torch.nn that has parameters: linear and bilinear maps and convolutions are uniform within
    1 / sqrt(fan_in), recurrent weights within 1 / sqrt(hidden_size), embeddings standard normal, attention Xavier uniform, as
    is every matrix inside an ``nn.Transformer``; norms are one and zero. A subclass with a ``reset_parameters`` of its own is
    left to other patterns; a bias that the model around it sets to zero, as those of transformers do, is refused:
    ``[{"*.bias": xinit.zeros()}, "torch"]``.

    Source: the ``reset_parameters`` of the modules in ``torch/nn/modules``.

    Example:
        >>> import torch, xinit
        >>> model = xinit.init_(torch.nn.Linear(100, 50), xinit.recipes.torch(), xinit.Key(0))
        >>> bool(model.weight.abs().max() < 0.1)
        True
    """

    def rules(model: nn.Module) -> Rules:
        transformers = [module for module in every_module(model) if resets_as(type(module), nn.Transformer)]
        matrices = {id(p) for module in transformers for p in module.parameters() if p.dim() > 1}

        def by_module(name: str, parameter: nn.Parameter, module: nn.Module) -> Distribution | None:
            if id(parameter) in matrices:
                return xavier_uniform()
            kind: Any = type(module)
            rule = rule_of(kind)
            return rule and rule(name.rpartition(".")[2], module)

        return Known("torch", {nn.Module: by_module})

    return rules


# ---- what the recipes below share: norms by type or name, biases, and everything with two dimensions or more ----

_NORM = re.compile(r".*(layer|rms|batch|group|instance)norm.*|.*norm(\d?d)?")
_NORM_NAME = re.compile(r".*norm\d*|ln|ln_?\w{1,2}")
_BIAS = re.compile(r"bias|\w*proj_bias|bias_(ih|hh)\w*")


def _norm(name: str, parameter: nn.Parameter, module: nn.Module) -> Distribution | None:
    owner, leaf = (["", *name.split(".")])[-2:]
    by_type = _NORM.fullmatch(type(module).__name__.lower())
    if by_type or (parameter.dim() == 1 and _NORM_NAME.fullmatch(owner.lower())):
        return scale_or_shift(leaf)
    return None


def _bias(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    return _BIAS.fullmatch(name.rpartition(".")[2]) is not None


def _matrix(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    return parameter.dim() >= 2


def _known(recipe: str, rules: Rules, matrix: Value) -> Rules:
    return Known(recipe, {nn.Module: _norm, _bias: zeros(), **rules, _matrix: matrix})


def _any(patterns: Sequence[str], op: str) -> Predicate:
    matches = [predicate(pattern, op) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
    return lambda name, parameter, module: parameter.dim() >= 2 and any(m(name, parameter, module) for m in matches)


def _names(model: nn.Module, chosen: Predicate) -> list[tuple[str, nn.Parameter]]:
    """The parameters under all their names, where these are chosen."""
    named = ((canonical_name(name), p) for name, p in model.named_parameters(remove_duplicate=False))
    return [(name, p) for name, p in named if chosen(name, p, model)]


RESIDUAL = (
    *("*.c_proj.weight", "*.o_proj.weight", "*.out_proj.weight", "*.wo.weight", "*.attention.dense.weight"),
    *("*.down_proj.weight", "*.experts.down_proj", "*.w2.weight", "*.fc2.weight", "*.fc_out.weight"),
    *("*.dense_4h_to_h.weight", "*.linear2.weight"),
)


def gpt2(
    std: float = 0.02,
    layers: int | None = None,
    residual: Sequence[str] = RESIDUAL,
    position_std: float | None = None,
) -> Recipe:
    """GPT-2: N(0, 0.02²), with the projections onto the residual path scaled by 1 / sqrt(2 · layers).

    Two such projections a layer, of the attention and of the MLP, add up on the residual path. Biases are zero, norms one and
    zero.

    Args:
        std: of all other weights, embeddings included.
        layers: their number; None for that of the model's ``config``, or else the number of blocks that the names count.
        residual: globs on the names of the projections.
        position_std: of learned position embeddings, ``wpe`` and the like; None for ``std``. OpenAI's code has 0.01.

    Raises:
        ValueError: by :func:`xinit.init_` and :func:`xinit.plan`, if no name matches ``residual`` (pass () to scale none), or the
            number of layers is not to be found.

    Source: Radford et al., "Language models are unsupervised multitask learners", 2019, section 2.3;
    ``modeling_gpt2.py`` in transformers (``_init_weights``); ``model.py`` in openai/gpt-2.

    Example:
        >>> import torch, xinit
        >>> block = lambda: torch.nn.ModuleDict({"c_proj": torch.nn.Linear(256, 256)})
        >>> model = torch.nn.ModuleDict({"h": torch.nn.ModuleList(block() for _ in range(8))})
        >>> [row.std for row in xinit.plan(model, xinit.recipes.gpt2()).rows[:2]]
        [0.005, 0.0]
    """

    def rules(model: nn.Module) -> Rules:
        is_residual = _any(residual, "gpt2")
        names = [name for name, _ in _names(model, is_residual)]
        if residual and not names:
            raise ValueError(f"gpt2: no parameter's name matches residual={tuple(residual)}; pass () to scale none")
        depth = depths(model, names, layers)
        return _known(
            "gpt2",
            {
                is_residual: lambda name, parameter, module: normal(std=std / sqrt(2 * depth(name))),
                _any(("*.wpe.weight", "*pos*emb*"), "gpt2"): normal(std=std if position_std is None else position_std),
            },
            normal(std=std),
        )

    return rules


def llama(std: float = 0.02) -> Recipe:
    """Llama: N(0, 0.02²) for every matrix, embedding and output layer, one for the norms, zero for biases if there are any.

    For decoders such as Llama, Mistral, Mixtral, Qwen2 and 3 and DeepSeek. Gemma's norms, of the 1 + w kind, are refused:
    ``[{"*norm.weight": xinit.zeros()}, "llama"]``.

    Args:
        std: of all matrices; a transformers model has its own in ``model.config.initializer_range``.

    Source: Touvron et al., "LLaMA: open and efficient foundation language models", 2023, for the architecture; the numbers are
    those of transformers, ``initializer_range`` in ``configuration_llama.py`` and ``_init_weights`` in ``modeling_utils.py``.

    Example:
        >>> import torch, xinit
        >>> model = torch.nn.ModuleDict({"wq": torch.nn.Linear(64, 64, bias=False), "norm": torch.nn.RMSNorm(64)})
        >>> [(row.name, row.method, row.std) for row in xinit.plan(model, xinit.recipes.llama()).rows]
        [('wq.weight', 'normal', 0.02), ('norm.weight', 'ones', 0.0)]
    """
    return _known("llama", {}, normal(std=std))


def vit(std: float = 0.02, bound: float = 2.0) -> Recipe:
    """Vision transformer: N(0, 0.02²) truncated to ±bound for every matrix, token and position embedding.

    Norms are one and zero, biases and mask tokens zero.

    Args:
        std: before truncation.
        bound: in absolute terms, as in ``trunc_normal_``. The default is that of the sources: 100 standard deviations, which cuts
            nothing. 0.04 cuts at two standard deviations, as Keras and JAX do, and leaves 0.88 of the std.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021, for the architecture; the numbers are those of DeiT's
    (Touvron et al., 2021) and timm's ``vision_transformer.py``, ``trunc_normal_(std=.02)``.

    Example:
        >>> import torch, xinit
        >>> model = xinit.init_(torch.nn.Linear(768, 768), xinit.recipes.vit(bound=0.04), xinit.Key(0))
        >>> round(model.weight.std().item(), 4), bool((model.weight.abs() <= 0.04).all())
        (0.0176, True)
    """
    return _known("vit", {_any(("*mask_token",), "vit"): zeros()}, trunc_normal(std=std, a=-bound, b=bound))


OUTPUTS = (
    *("*.lm_head.weight", "*.head.weight", "*.head.fc.weight", "*.output.weight", "*.classifier.weight"),
    *("*.score.weight", "*.embed_out.weight", "*.readout.weight", "*.unembed.weight", "fc.weight"),
)


def mup(
    gain: float = 1.0,
    base_width: float = 1.0,
    embedding_std: float = 1.0,
    outputs: Sequence[str] = OUTPUTS,
    zero_outputs: bool = False,
    tied: bool = False,
) -> Recipe:
    """Maximal update parametrization (µP): the initial scales that let hyperparameters carry over from width to width.

    Weights from inputs and between hidden layers have std ``gain / sqrt(fan_in)``, output layers
    ``gain sqrt(base_width) / fan_in``, embeddings ``embedding_std`` whatever the width; biases are zero, norms one and zero. At
    fan_in = base_width, that of a tuned model, an output layer is as any other; as the width grows it shrinks faster. Weights
    whose fan_in is not known, such as stacked experts, are left to other patterns: ``[{"*.experts.*": ...}, "mup"]``.

    µP also asks for learning rates by width. With Adam, a matrix whose fan_in grows with the width, of a hidden or of an output
    layer, has the tuned model's rate times that model's fan_in over its own; embeddings, matrices that read inputs of a fixed
    size, biases and norms have the tuned model's. If heads grow wider, not more, attention is to be scaled by 1 / d, not
    1 / sqrt(d). With these, :func:`xinit.coordinate_check` finds activations of every width alike, and with one rate for all not.

    Args:
        gain: of all but embeddings.
        base_width: the width at which output layers have the standard scale.
        embedding_std: of ``nn.Embedding``, and of tokens and position embeddings that are plain parameters.
        outputs: globs on the names of output layers' weights.
        zero_outputs: make these zero, as the paper recommends.
        tied: that an output layer is tied to an embedding, and the model multiplies its outputs by 1 / width itself.

    Raises:
        ValueError: by :func:`xinit.init_` and :func:`xinit.plan`, if no name matches ``outputs`` (pass () if there is no output
            layer), or one is tied to an embedding, unless ``tied``: no scale is right for both.

    Source: Yang & Hu et al., "Tensor Programs V: tuning large neural networks via zero-shot hyperparameter transfer", 2022,
    table 3; with ``tied``, table 8.

    Example:
        >>> import torch, xinit
        >>> net = lambda n: torch.nn.ModuleDict({"hidden": torch.nn.Linear(n, n), "head": torch.nn.Linear(n, 10)})
        >>> [[row.std for row in xinit.plan(net(n), "mup", only="*.weight").rows] for n in (64, 256)]
        [[0.125, 0.015625], [0.0625, 0.00390625]]
    """

    def weight(name: str, parameter: nn.Parameter, module: nn.Module) -> Distribution | None:
        unit = _fan_in_normal(name.rpartition(".")[2], module)
        return unit and replace(unit, parameters=(gain,))

    def output(name: str, parameter: nn.Parameter, module: nn.Module) -> Distribution | None:
        unit = _fan_in_normal(name.rpartition(".")[2], module)
        if zero_outputs or unit is None:
            return zeros() if zero_outputs else None
        return normal(std=gain * sqrt(base_width) * unit.resolve(parameter.shape).std ** 2)  # (1 / sqrt(fan_in))²

    def embedding(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
        owned = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        return owned or (parameter.dim() >= 2 and re.search("token|pos|emb", name.rpartition(".")[2]) is not None)

    def rules(model: nn.Module) -> Rules:
        is_output = _any(outputs, "mup")
        named = _names(model, is_output)
        if outputs and not named:
            raise ValueError(
                f"mup: no parameter's name matches outputs={tuple(outputs)}; pass () if there is no output layer"
            )
        tables = {id(m.weight) for m in every_module(model) if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
        shared = [name for name, parameter in named if id(parameter) in tables]
        if shared and not tied:
            raise ValueError(
                f"mup: {', '.join(shared)} is tied to an embedding, and no scale is right for both: untie them, or multiply the "
                f"model's outputs by 1 / width and pass recipes.mup(tied=True)"
            )
        return _known("mup", {embedding: normal(std=embedding_std), is_output: output}, weight)

    return rules


def xavier(
    distribution: ScalingDistribution = "uniform",
    activations: Mapping[str, Nonlinearity] | None = None,
    inputs: Any = None,
) -> Recipe:
    """Xavier, or Glorot: every matrix with variance gain² · 2 / (fan_in + fan_out), by the gain of the activation that follows.

    Biases are zero, norms one and zero, embeddings standard normal. A matrix that is not known to be followed by an activation
    has gain 1.

    Args:
        distribution: "uniform", "normal" or "truncated_normal".
        activations: what follows, by the names of weights, as the ``nonlinearity`` of :func:`xinit.kaiming_normal_`; for those
            that are left out, nothing does.
        inputs: a batch, to see what follows in one forward pass, as :func:`xinit.recommend` does: a tensor, a tuple of
            arguments, or a mapping of those that have names. Without one, and without ``activations``, the order of modules
            tells; in a model without activations that are modules, ReLU is taken to follow each matrix but the last.

    Raises:
        ValueError: for another distribution, or both ``inputs`` and ``activations``; by :func:`xinit.init_` and
            :func:`xinit.plan`, for names of ``activations`` that the model lacks, and as :func:`xinit.recommend`, whose other
            errors are raised then too.

    Source: Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, equation 16.

    Example:
        >>> import torch, xinit
        >>> model = torch.nn.Sequential(torch.nn.Linear(30, 70), torch.nn.Tanh(), torch.nn.Linear(70, 30))
        >>> [round(row.std / 0.02**0.5, 4) for row in xinit.plan(model, "xavier", only="*.weight").rows]
        [1.6667, 1.0]
    """
    return _classic("xavier", "fan_avg", distribution, activations, inputs)


def kaiming(
    distribution: ScalingDistribution = "normal",
    activations: Mapping[str, Nonlinearity] | None = None,
    inputs: Any = None,
) -> Recipe:
    """Kaiming, or He: every matrix with variance gain² / fan_in, by the gain of the activation that follows it.

    All else is as for :func:`xavier`, and so are the arguments.

    Source: He et al., "Delving deep into rectifiers", 2015, equation 10.

    Example:
        >>> import torch, xinit
        >>> model = torch.nn.Sequential(torch.nn.Linear(50, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10))
        >>> [round(row.std, 4) for row in xinit.plan(model, "kaiming", only="*.weight").rows]
        [0.2, 0.1414]
        >>> recipe = xinit.recipes.kaiming(inputs=torch.ones(8, 50))  # one forward pass shows what follows
        >>> torch.equal(xinit.init_(model, recipe, xinit.Key(0))[0].weight, xinit.init_(model, "kaiming", xinit.Key(0))[0].weight)
        True
    """
    return _classic("kaiming", "fan_in", distribution, activations, inputs)


def _classic(
    recipe: str, mode: str, distribution: ScalingDistribution, activations: Mapping[str, Any] | None, inputs: Any
) -> Recipe:
    variance_scaling(1.0, "fan_in", distribution)  # which says what is wrong with it
    if activations is not None and inputs is not None:
        raise ValueError(f"{recipe}: either inputs or activations say what follows, but both were given")

    def rules(model: nn.Module) -> Rules:
        known = gains(recipe, model, activations, inputs)

        def weight(name: str, parameter: nn.Parameter, module: nn.Module) -> Distribution | None:
            unit = _fan_in_normal(name.rpartition(".")[2], module)
            if unit is None and parameter.dim() != 2:
                return None
            unit = unit or variance_scaling(1.0, "fan_in", "normal")
            return replace(unit, name=distribution, fan=mode, parameters=(known.get(name, 1.0),))

        return _known(recipe, {nn.Embedding: normal(), nn.EmbeddingBag: normal()}, weight)

    return rules


def _fan_in_normal(leaf: str, module: nn.Module) -> Distribution | None:
    """N(0, 1 / fan_in) for the weights of which it is known which axes are the inputs."""
    if isinstance(module, ConvNd) and leaf == "weight":
        inputs, outputs = (0, 1) if module.transposed else (1, 0)
        return variance_scaling(1.0, "fan_in", "normal", in_axis=inputs, out_axis=outputs, groups=module.groups)
    if type(module).__name__ == "Conv1D" and leaf == "weight":  # transformers', for x @ w
        return variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=1)
    linear = isinstance(module, nn.Linear) and leaf == "weight"
    recurrent = isinstance(module, nn.RNNBase | nn.RNNCellBase) and leaf.startswith("weight_")
    attention = isinstance(module, nn.MultiheadAttention) and leaf.endswith("_weight")
    return variance_scaling(1.0, "fan_in", "normal") if linear or recurrent or attention else None


RECIPES: dict[str, Callable[[], Recipe]] = {
    **{"torch": torch, "xavier": xavier, "kaiming": kaiming},
    **{"gpt2": gpt2, "llama": llama, "vit": vit, "mup": mup},
}
