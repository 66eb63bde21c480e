"""Moves batches between the host and a device."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Arriving(NamedTuple):
    """A tensor on its way to the host. It is there when the event has happened; None if it is there already."""

    tensor: Tensor
    event: torch.cuda.Event | None = None

    def arrived(self) -> Tensor:
        """The tensor. Waits for it."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensor


class Transfers(Protocol):
    """The two ways between the host and a device."""

    def upload(self, host: Tensor) -> Tensor:
        """The tensor on the device."""

    def download(self, tensor: Tensor) -> Arriving:
        """The tensor on its way to the host, when what is computing it is done."""


class NoTransfers:
    """For a device that computes in the memory of the host."""

    def upload(self, host: Tensor) -> Tensor:
        return host

    def download(self, tensor: Tensor) -> Arriving:
        return Arriving(tensor)


class CudaTransfers:
    """Copies from and to pinned memory, on streams of their own. The host waits for none of them.

    A batch can so be uploaded while the device computes the one before it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def upload(self, host: Tensor) -> Tensor:
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._up):
            tensor = host.pin_memory().to(self.device, non_blocking=True)
        computing.wait_stream(self._up)
        tensor.record_stream(computing)
        return tensor

    def download(self, tensor: Tensor) -> Arriving:
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            host.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._down)
        return Arriving(host, self._down.record_event(torch.cuda.Event(blocking=True)))


def transfers_to(device: torch.device) -> Transfers:
    """The transfers between the host and a device."""
    return CudaTransfers(device) if device.type == "cuda" else NoTransfers()
