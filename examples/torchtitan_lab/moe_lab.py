"""The deepseek_v3 MoE trainer of TorchTitan 0.3.0, small enough for a laptop's CPUs.

`--module moe_lab --config lab`. Paths are relative to the workdir; `python assets.py WORKDIR` makes
the tokenizer and the data there. moe_lab.toml says the same for 0.2.2.
"""

from __future__ import annotations

import dataclasses

from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.config.configs import DebugConfig
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models import deepseek_v3
from torchtitan.models.common import ComplexRoPE, Embedding, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.models.deepseek_v3 import DeepSeekV3Model
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

DIM, VOCABULARY, ROPE = 128, 1024, 16


def model() -> DeepSeekV3Model.Config:
    """About 1.3 M parameters: latent attention, one dense, three MoE layers, 8 experts, top-2."""
    layers = deepseek_v3._build_dsv3_layers(
        n_layers=4,
        n_dense_layers=1,
        dim=DIM,
        n_heads=4,
        q_lora_rank=0,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=ROPE,
        v_head_dim=32,
        mscale=0.70,
        dense_hidden_dim=256,
        moe_hidden_dim=64,
        num_experts=8,
        num_shared_experts=1,
        router_top_k=2,
        router_score_func="softmax",
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        rope=ComplexRoPE.Config(dim=ROPE, max_seq_len=4096, theta=10000.0),
    )
    for layer in layers:  # the language models' own kinds of attention want a GPU
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return DeepSeekV3Model.Config(
        vocab_size=VOCABULARY,
        dim=DIM,
        tok_embeddings=Embedding.Config(
            num_embeddings=VOCABULARY, embedding_dim=DIM, param_init=deepseek_v3._EMBEDDING_INIT
        ),
        norm=RMSNorm.Config(normalized_shape=DIM, param_init=deepseek_v3._NORM_INIT),
        lm_head=deepseek_v3.Linear.Config(
            in_features=DIM,
            out_features=VOCABULARY,
            param_init=deepseek_v3._output_linear_init(DIM),
        ),
        layers=layers,
    )


def lab() -> Trainer.Config:
    """The whole configuration. superv sets `checkpoint` as it needs it."""
    spec: ModelSpec = deepseek_v3.model_registry("debugmodel")
    spec = dataclasses.replace(spec, flavor="lab", model=model())
    loss = CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(spec))
    return Trainer.Config(
        dump_folder="outputs",
        model_spec=spec,
        hf_assets_path="assets/tokenizer",
        loss=ChunkedLossWrapper.Config(loss_fn=loss),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4_test", dataset_path="assets/data"),
        metrics=MetricsProcessor.Config(log_freq=1),
        # fused and foreach AdamW want a GPU
        optimizer=dataclasses.replace(default_adamw(lr=2e-3), implementation="for-loop"),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=2),
        training=TrainingConfig(
            local_batch_size=2, seq_len=128, steps=40, disable_cuda_graphs=True
        ),
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),
        activation_checkpoint=None,
        checkpoint=CheckpointManager.Config(
            enable=True, interval=5, keep_latest_k=0, last_save_model_only=False
        ),
        debug=DebugConfig(seed=42, deterministic=True),
    )


def diverges() -> Trainer.Config:
    """The same with a learning rate of 1e30: its loss is NaN within a few steps."""
    config = lab()
    optimizer = dataclasses.replace(default_adamw(lr=1e30), implementation="for-loop")
    return dataclasses.replace(config, optimizer=optimizer)
