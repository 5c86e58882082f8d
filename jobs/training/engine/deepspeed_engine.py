"""DeepSpeed: its configuration from ours, and the engine."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from jobs.training.config import TrainConfig
from jobs.training.engine.backend import EngineName, StepOutcome
from jobs.training.engine.universal import universal
from jobs.training.optimizer import make_adamw, parameter_groups, set_learning_rate
from padt.errors import UserError

TAG = "deepspeed"


def deepspeed_config(config: TrainConfig, micro_batches: int = 1) -> dict[str, Any]:
    """DeepSpeed's JSON for a run with so many micro-batches of each rank in a step.

    ``gradient_clipping`` is always written: DeepSpeed clips at 1.0 where it is missing.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        # Small models and CPU runs: parameters below this many elements stay whole on every rank.
        zero["stage3_param_persistence_threshold"] = 10_000
    # The sum of many small gradients in bf16 loses the last ones. Without ZeRO DeepSpeed has no other way.
    wide = config.precision == "bf16" and config.zero_stage > 0
    return {
        **({"data_types": {"grad_accum_dtype": "fp32"}} if wide else {}),
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.precision == "bf16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def prepare_deepspeed() -> None:
    """Settle what DeepSpeed decides when it is first used: quiet logs, and no compiling on CPU."""
    import deepspeed.ops
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
    # The shared-memory op serves inference only; building it would take 45 s and a compiler at the first run on CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine:
    """DeepSpeed's engine; see ``jobs.training.engine.backend.Engine``. torch.distributed must be up already."""

    name: EngineName = "deepspeed"

    def __init__(self, model: nn.Module, config: TrainConfig, micro_batches: int) -> None:
        """Args: see ``jobs.training.engine.backend.build_engine``."""
        import deepspeed
        from deepspeed.utils import set_z3_leaf_modules

        prepare_deepspeed()
        self.partitioned = config.zero_stage == 3
        decoders = _object_decoders(model) if self.partitioned else []
        for decoder in decoders:
            set_z3_leaf_modules(decoder, [type(decoder)])
            decoder.register_forward_hook(_pack_masks)
        groups, self._scales = parameter_groups(model, config.optimizer)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=make_adamw(groups, config.optimizer),
            config=deepspeed_config(config, micro_batches),
            dist_init_required=False,
        )
        for decoder in decoders:
            decoder.register_forward_hook(_unpack_masks)
        self._engine.train()
        self.module = self._engine.module
        self.device = self._engine.device
        # There DeepSpeed clips but does not tell the norm, and applies what is not finite.
        self._is_plain = config.zero_stage == 0 and config.precision == "fp32"
        self._pending = 0
        self._micro_batches = micro_batches

    def forward(self, **inputs: Any) -> Any:
        """See ``Engine``."""
        return self._engine(**inputs)

    def backward(self, loss: torch.Tensor) -> None:
        """See ``Engine``."""
        self._engine.backward(loss)
        self._pending += 1
        if self._pending < self._micro_batches:
            # It counts micro-batches in its step, and only counts in all but the last.
            self._engine.step()

    def step(self, rate: float, loss: torch.Tensor) -> StepOutcome:
        """See ``Engine``; in bf16 a gradient that is not finite is left out, in fp32 it is applied by ZeRO 1 to 3."""
        self._pending = 0
        if self._is_plain:
            gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
            told, norm = _to_host(loss, torch.nn.utils.get_total_norm(gradients))
            applied = math.isfinite(told) and math.isfinite(norm)
            if applied:
                self._apply(rate)
            return StepOutcome(told, norm, applied)
        self._apply(rate)
        told, norm = _to_host(loss, self._engine.get_global_grad_norm())
        applied = self._engine.was_step_applied()
        # Of a step that it leaves out, it tells the norm of the one before.
        return StepOutcome(told, norm if applied else math.inf, applied)

    def _apply(self, rate: float) -> None:
        set_learning_rate(self._engine.optimizer, rate, self._scales)
        self._engine.step()

    def save(self, folder: Path) -> None:
        """See ``Engine``."""
        # Frozen weights are the base model's: with adapters a checkpoint is as small as what is trained.
        frozen = self._has_frozen()
        self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=frozen)

    def load(self, folder: Path, workers: int) -> None:
        """See ``Engine``; shares of another number of ranks are converted first."""
        if self._engine.zero_optimization_stage() == 0 or workers == dist.get_world_size():
            self._load(folder)
            return
        options = self._engine._config
        with universal(folder, TAG) as converted:
            options.load_universal_checkpoint = True
            try:
                self._load(converted)
            finally:
                options.load_universal_checkpoint = False

    def _load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=not self._has_frozen())
        if path is None:
            raise UserError(f"The checkpoint {folder} lacks DeepSpeed's files: remove it to go on from the one before.")

    def _has_frozen(self) -> bool:
        return not all(parameter.requires_grad for parameter in self.module.parameters())


def _to_host(loss: torch.Tensor, norm: float | torch.Tensor | None) -> list[float]:
    """Both numbers, which wait for the device once."""
    return torch.stack(
        [loss.float(), torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float32, device=loss.device)]
    ).tolist()


# ZeRO 3 records the order of module calls, forwards and backwards, and stops when ranks differ. What the object decoder
# does follows the data twice over: it calls its parts once a chunk of objects, and it returns one mask an object, each
# of which counts as a call when gradients come back. So it is fetched whole (a leaf), and its masks cross DeepSpeed's
# hooks as one tensor: hooks run in the order in which they were registered.


def _object_decoders(model: nn.Module) -> list[nn.Module]:
    from padt.model.decoder import ObjectDecoder

    return [module for module in model.modules() if isinstance(module, ObjectDecoder)]


def _pack_masks(module: nn.Module, inputs: Any, output: Any) -> Any:
    boxes, scores, masks = output
    shapes = [mask.shape for mask in masks]
    return boxes, scores, torch.cat([mask.flatten() for mask in masks]), shapes


def _unpack_masks(module: nn.Module, inputs: Any, output: Any) -> Any:
    boxes, scores, packed, shapes = output
    parts = packed.split([shape.numel() for shape in shapes])
    return boxes, scores, [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
