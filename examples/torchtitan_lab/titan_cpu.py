"""TorchTitan 0.3.0 or 0.2.2 on CPUs: what it needs to train without a GPU, and a small MoE flavor.

Importing this module imports torch and torchtitan.train and puts right the places in which
TorchTitan asks for a GPU. It starts nothing, so it can be preloaded in a process that ranks are
forked from. `main(argv)` trains; the file can be run as a script by torchrun or by superv, for
0.3.0 with `--module moe_lab --config lab`, for 0.2.2 with `--job.config_file moe_lab.toml`.
TorchTitan itself is used as it comes from PyPI.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Sequence
from typing import Any

# Before the imports below: these are read once, when the libraries load. numpy's and Arrow's
# background threads would make a later fork unsafe; this example must not reach for a network;
# the data set's cache must be writable for whoever runs the job, and is node-local.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HOME", os.path.join(tempfile.gettempdir(), f"superv-hf-{os.getuid()}"))

import torch
import torch._utils
import torch.distributed
from torch.distributed.fsdp import FSDPModule

# 0.3 has a trainer.py, 0.2 has none; torchtitan itself is not imported before it is prepared.
NEWER = os.path.exists(
    os.path.join(os.path.dirname(importlib.util.find_spec("torchtitan").origin), "trainer.py")
)


def _pretend_cpu_is_an_accelerator() -> None:
    """Answer what TorchTitan asks about its device, before torchtitan.tools.utils asks it."""
    torch._utils._get_available_device_type = lambda: "cpu"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch.cpu.get_device_name = lambda device=None: "CPU"
    torch.cpu.get_device_properties = lambda device=None: types.SimpleNamespace(total_memory=pages)
    torch.cpu.memory_stats = lambda device=None: {}
    torch.cpu.reset_peak_memory_stats = lambda device=None: None
    torch.cpu.empty_cache = lambda: None


def _leave_out_triton(name: str) -> None:
    """Replace the one module that imports Triton: its kernels serve GPUs only."""

    class Kernels(types.ModuleType):
        def __getattr__(self, kernel: str) -> Any:
            if kernel.startswith("__"):
                raise AttributeError(kernel)

            def refuse(*args: Any, **kwargs: Any) -> Any:
                raise RuntimeError(f"{kernel} is a Triton kernel; there is none on CPUs")

            return refuse

    sys.modules[name] = Kernels(name)


def _count_integers_on_cpu() -> None:
    """torch.histc has no integer kernel on the CPU; the router counts tokens per expert with it."""
    histc = torch.histc

    def counted(values: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if values.is_floating_point():
            return histc(values, *args, **kwargs)
        return histc(values.float(), *args, **kwargs).to(values.dtype)

    torch.histc = counted


def _use_what_gloo_can() -> None:
    """Gloo has no PREMUL_SUM, and its barrier takes no device ids."""
    set_factor = FSDPModule.set_gradient_divide_factor

    def set_gradient_divide_factor(self: FSDPModule, factor: float) -> None:
        set_factor(self, factor)
        self.set_force_sum_reduction_for_comms(True)

    FSDPModule.set_gradient_divide_factor = set_gradient_divide_factor
    barrier = torch.distributed.barrier

    def barrier_without_devices(*args: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        return barrier(*args, **kwargs)

    torch.distributed.barrier = barrier_without_devices


def _set_timeouts_as_torch_2_14() -> None:
    """0.3.0 calls torch.distributed.set_timeout, which torch 2.13 has under another name."""
    if not hasattr(torch.distributed, "set_timeout"):
        set_pg_timeout = torch.distributed.distributed_c10d._set_pg_timeout
        torch.distributed.set_timeout = lambda timeout, group=None: set_pg_timeout(timeout, group)


def _prepare_0_2() -> None:
    """What 0.2.2 needs besides, and its flavor `lab`: 0.3.0 has it in moe_lab.py."""
    import torchtitan.models.attention
    from torchtitan.models.deepseek_v3 import DeepSeekV3ModelArgs, deepseekv3_args
    from torchtitan.models.moe import MoEArgs

    # It allows the GPU kernels only, by name.
    torchtitan.models.attention.sdpa_kernel = lambda *args, **kwargs: contextlib.nullcontext()
    # About 1.3 M parameters: still latent attention, one dense and three MoE layers, 8 experts,
    # top-2.
    deepseekv3_args["lab"] = DeepSeekV3ModelArgs(
        vocab_size=1024,
        dim=128,
        inter_dim=256,
        moe_inter_dim=64,
        n_layers=4,
        n_dense_layers=1,
        n_heads=4,
        moe_args=MoEArgs(
            num_experts=8,
            num_shared_experts=1,
            top_k=2,
            score_func="softmax",
            route_norm=False,
            score_before_experts=False,
            use_grouped_mm=False,
        ),
        q_lora_rank=0,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        mscale=0.70,
    )


_pretend_cpu_is_an_accelerator()
_use_what_gloo_can()
if NEWER:
    _leave_out_triton("torchtitan.distributed.minimal_async_ep.kernels")
    _set_timeouts_as_torch_2_14()
else:
    _leave_out_triton("torchtitan.models.moe.kernels")
    _count_integers_on_cpu()

import torchtitan.tools.utils  # noqa: E402 (after the lines above, which it depends on)
import torchtitan.train  # noqa: E402
from torchtitan.config import ConfigManager  # noqa: E402

# It would run lspci in every rank to look for a GPU; only the printed MFU depends on the answer.
torchtitan.tools.utils.get_peak_flops = lambda device_name: 1e12
if not NEWER:
    _prepare_0_2()


def main(argv: Sequence[str]) -> None:
    """Train as `torchtitan.train` does with these arguments (TorchTitan's own flags)."""
    # 0.2.2's parse_args takes its default from sys.argv when torchtitan is imported; a rank forked
    # from a preloaded process would silently train with its parent's arguments.
    ConfigManager.parse_args.__defaults__ = (list(argv),)
    # libgomp has read OMP_NUM_THREADS by now, perhaps in the parent that this rank was forked from.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if NEWER:
        torchtitan.train.main()
    else:
        torchtitan.train.main(torchtitan.train.Trainer)


if __name__ == "__main__":
    main(sys.argv[1:])
