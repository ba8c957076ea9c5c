"""The model that a command line names: built without memory."""

from __future__ import annotations

import os
import sys
from ast import literal_eval
from importlib import import_module
from typing import Any

import torch
from torch import nn


def build(target: str, arguments: list[str], device: str = "meta") -> nn.Module:
    """The model that ``package.module:Class`` makes of its arguments.

    Of a transformers model class, the arguments are those of its configuration; a configuration makes the model that the Auto
    classes choose for it.
    """
    module, _, path = target.partition(":")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    sys.path.append(os.getcwd())  # which python -m has there, and a script has not
    made: Any = import_module(module)
    for part in path.split("."):
        made = getattr(made, part)
    named = {name: value(text) for name, equals, text in (a.partition("=") for a in arguments) if equals}
    unnamed = [value(argument) for argument in arguments if "=" not in argument]
    with torch.device(device):
        if getattr(made, "config_class", None):  # transformers', of a model
            return made(made.config_class(*unnamed, **named))  # type: ignore[no-any-return]
        made = made(*unnamed, **named)
        return made if isinstance(made, nn.Module) else from_config(made)


def from_config(config: Any) -> nn.Module:
    """The model of a transformers configuration, with its head if there is a usual one."""
    if not hasattr(config, "model_type"):
        raise ValueError(f"{type(config).__name__} is neither a torch.nn.Module nor a transformers configuration")
    transformers: Any = import_module("transformers")
    kinds = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForImageClassification")
    usual = (getattr(transformers, kind) for kind in kinds)
    auto = next((auto for auto in usual if type(config) in auto._model_mapping), transformers.AutoModel)
    model: nn.Module = auto.from_config(config)
    return model


def value(text: str) -> Any:
    """A Python literal, or else the text itself."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return text
