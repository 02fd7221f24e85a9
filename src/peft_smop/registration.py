"""Make PEFT know a method of ours: its type, its configuration, its tuner and its prefix."""

from __future__ import annotations

from importlib import import_module

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

from peft_smop.arrival import METHODS
from peft_smop.errors import SMoPError


def _extend_peft_types(name: str) -> None:
    """Add a method's name to PEFT's enumeration of methods, once.

    `register_peft_method` accepts only members of `PeftType`, and an enumeration cannot be
    subclassed or extended by its public face; the members of a `str` enumeration are plain enough
    to be added by hand.

    Args:
        name: the method's name in capitals.

    Raises:
        SMoPError: this PEFT already has a method of that name which is not ours.
    """
    if name in PeftType.__members__:
        config = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[name])
        if config is None or not config.__module__.startswith("peft_smop."):
            raise SMoPError(
                f"the installed PEFT brings a method named {name} of its own; use that one, or"
                " install a PEFT without it"
            )
        return
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member._sort_order_ = len(PeftType.__members__)
    type.__setattr__(PeftType, name, member)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Enter a method in PEFT's tables, and bring the others; a second call does nothing.

    Args:
        name: the method's name in capitals, which its configurations name as `PeftType`.
        config_cls: the class of its configurations.
        model_cls: its tuner.

    Raises:
        SMoPError: this PEFT already has a method of that name which is not ours.
    """
    _extend_peft_types(name)
    if PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[name]) is None:
        register_peft_method(name=name.lower(), config_cls=config_cls, model_cls=model_cls)
    for package in METHODS:
        import_module(package)
