"""What people write for the arguments of the fused optimizers, as they know them from torch.optim, Keras and optax."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any, TypeVar

from untorn.first_guesses import note_parameters, unknown_arguments, words

__all__ = ["says_the_right_word"]

_C = TypeVar("_C", bound=type)

_GUESSES = words(
    ("lr eta rate step_size lr_schedule schedule", "write learning_rate=, a number or a function of the step"),
    ("beta1 beta2 beta_1 beta_2 b1 b2", "write betas=(beta1, beta2); Adam and AdamW have them"),
    ("beta", "write momentum= for SGD and RMSprop, betas= for Adam and AdamW"),
    ("epsilon", "write eps="),
    ("decay l2 wd weightdecay", "write weight_decay="),
    ("rho", "write alpha="),
    ("initial_accumulator", "write initial_accumulator_value="),
    ("params parameters model_parameters", "leave it out: the Trainer has the parameters"),
    ("clipnorm clip_norm max_grad_norm clipvalue global_clipnorm max_norm", "write Trainer(clip_norm=)"),
    ("momentum nesterov betas amsgrad centered alpha lr_decay", "this optimizer has none; others do"),
    (
        "dampening maximize foreach fused capturable differentiable decoupled_weight_decay",
        "only torch's own has that; to have it make the steps write functools.partial(torch.optim.NAME, ...)",
    ),
)


def says_the_right_word(cls: _C) -> _C:
    """Have a dataclass raise a TypeError with the right word for an argument that it does not have."""
    known, make = {field.name for field in fields(cls) if field.init}, vars(cls)["__init__"]

    note_parameters(cls.__name__, known)

    @functools.wraps(make)
    def __init__(self: Any, *args: Any, **given: Any) -> None:
        unknown = [name for name in given if name not in known]
        if unknown:
            raise unknown_arguments(cls.__name__, keywords=unknown, guesses=_GUESSES)
        make(self, *args, **given)

    type.__setattr__(cls, "__init__", __init__)
    return cls
