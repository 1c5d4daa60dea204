"""A dispatch mode that costs nothing to enter: what every pass that watches operators is built on."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class OperatorMode(TorchDispatchMode):
    """Sees every operator that runs inside it; override ``__torch_dispatch__``."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Opt out of a wrapper around ``__torch_dispatch__`` whose first call imports the whole compiler (3 s)."""
        return False
