"""The launch configurations in `examples/` are read by the tools that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from trl import GRPOConfig, TrlParser
from trl.scripts.vllm_serve import ScriptArguments

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_accelerate_shards_by_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    path = EXAMPLES / "accelerate_fsdp2.yaml"
    asked = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    args, _, _ = _validate_launch_command(asked)
    assert (args.use_fsdp, args.num_processes, args.mixed_precision) == (True, 8, "bf16")
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


def test_trl_serves_by_its_configuration(tmp_path: Path) -> None:
    path = EXAMPLES / "vllm_serve.yaml"
    (args,) = TrlParser(ScriptArguments).parse_args_and_config(["--config", str(path)])
    assert (args.model, args.host, args.port) == ("Qwen/Qwen2.5-1.5B-Instruct", "127.0.0.1", 8000)
    told = path.read_text()
    assert 'use_vllm=True, vllm_mode="server", vllm_server_base_url="http://localhost:8000"' in told
    config = GRPOConfig(
        str(tmp_path), use_vllm=True, vllm_mode="server", vllm_server_base_url="http://localhost:8000",
        use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    assert config.vllm_server_base_url.endswith(f":{args.port}")
