"""TorchTitan 0.2.2 on CPUs: what it needs to train without a GPU, and a small MoE flavor.

Importing this module imports torch and torchtitan.train, puts right the places in which TorchTitan
asks for a GPU, and registers the flavor `lab` of deepseek_v3. It starts nothing, so it can be
preloaded in a process that ranks are forked from. `main(argv)` trains; the file can be run as a
script by torchrun or by superv. TorchTitan itself is used as it comes from PyPI; 0.3 would not do,
its language models dropped SDPA attention.
"""

from __future__ import annotations

import contextlib
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


def _pretend_cpu_is_an_accelerator() -> None:
    """Answer what TorchTitan asks about its device, before torchtitan.tools.utils asks it."""
    torch._utils._get_available_device_type = lambda: "cpu"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    torch.cpu.get_device_name = lambda device=None: "CPU"
    torch.cpu.get_device_properties = lambda device=None: types.SimpleNamespace(total_memory=pages)
    torch.cpu.memory_stats = lambda device=None: {}
    torch.cpu.reset_peak_memory_stats = lambda device=None: None
    torch.cpu.empty_cache = lambda: None


def _leave_out_triton() -> None:
    """Replace the one module that imports Triton: its kernel serves grouped_mm, on GPUs only."""
    kernels = types.ModuleType("torchtitan.models.moe.kernels")

    def generate_permute_indices(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("generate_permute_indices is a Triton kernel; there is none on CPUs")

    kernels.generate_permute_indices = generate_permute_indices
    sys.modules[kernels.__name__] = kernels


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


_pretend_cpu_is_an_accelerator()
_leave_out_triton()
_count_integers_on_cpu()
_use_what_gloo_can()

import torchtitan.models.attention  # noqa: E402 (after the lines above, which it depends on)
import torchtitan.tools.utils  # noqa: E402
import torchtitan.train  # noqa: E402
from torchtitan.config import ConfigManager  # noqa: E402
from torchtitan.models.deepseek_v3 import DeepSeekV3ModelArgs, deepseekv3_args  # noqa: E402
from torchtitan.models.moe import MoEArgs  # noqa: E402

# It allows the GPU kernels only, by name.
torchtitan.models.attention.sdpa_kernel = lambda *args, **kwargs: contextlib.nullcontext()
# It would run lspci in every rank to look for a GPU; only the printed MFU depends on the answer.
torchtitan.tools.utils.get_peak_flops = lambda device_name: 1e12

# About 1.3 M parameters: still latent attention, one dense and three MoE layers, 8 experts, top-2.
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


def main(argv: Sequence[str]) -> None:
    """Train as `torchtitan.train` does with these arguments (TorchTitan's own flags)."""
    # parse_args takes its default from sys.argv when torchtitan is imported; a rank forked from a
    # preloaded process would silently train with its parent's arguments.
    ConfigManager.parse_args.__defaults__ = (list(argv),)
    # libgomp has read OMP_NUM_THREADS by now, perhaps in the parent that this rank was forked from.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torchtitan.train.main(torchtitan.train.Trainer)


if __name__ == "__main__":
    main(sys.argv[1:])
