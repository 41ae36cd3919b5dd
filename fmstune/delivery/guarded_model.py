"""Guard the model that a vendor's callback receives: its changes are undone, or at least detected."""

from __future__ import annotations

from typing import Any


class ModelGuard:
    """A model's weights and gradients before a call.

    It holds references, not copies: what was replaced (`model.half()`, `requires_grad_`, a gradient set to
    `None`) is restored. In-place changes are detected by torch's version counters, which count everything
    except writes through `.data`.
    """

    def __init__(self, model: Any) -> None:
        parameters = getattr(model, "parameters", None)
        self._held = [
            (each, each.data, each._version, each.requires_grad, each.grad, _version(each.grad))
            for each in (parameters() if callable(parameters) else ())
        ]

    def undo(self) -> str | None:
        """Restore what can be restored. Return a sentence about what a call has changed, or `None`."""
        replaced = written = False
        for parameter, data, version, requires_grad, grad, grad_version in self._held:
            written = written or _version(grad) != grad_version or parameter._version != version
            if parameter.data_ptr() != data.data_ptr() or parameter.dtype != data.dtype:
                replaced, parameter.data = True, data
            if parameter.requires_grad != requires_grad:
                replaced, parameter.requires_grad = True, requires_grad
            if parameter.grad is not grad:
                replaced, parameter.grad = True, grad
        if written:
            return "it has changed the model's weights or gradients, with which the training continues"
        return "it has changed the model, which is put back" if replaced else None


def _version(tensor: Any) -> int:
    return 0 if tensor is None else int(tensor._version)
