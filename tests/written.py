"""Logs as their own writers write them: small files of toy runs, kept because the writers are too large to install,
and what the tests of importers share.

`TENSORBOARD` is of tensorboard 2.21 (`tensorboard.summary.Writer`, scalars as tensors), `TENSORBOARDX` of
tensorboardX 2.6 (`SummaryWriter`, as torch's: plain scalars, and a text), `WANDB` of wandb 0.31 offline, without
its records about the machine.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collapsewatch.importers import Imported, ImportFailed, Options, Source, find

LOGS = Path(__file__).parents[2] / "shared" / "data" / "logs"

TENSORBOARD = b64decode(
    "SAAAAAAAAAD+kkidCZqYCAPLwdpBGg1icmFpbi5FdmVudDoyUi4KLHRlbnNvcmJvYXJkLnN1bW1hcnkud3JpdGVyLmV2ZW50X2ZpbGVfd3Jp"
    "dGVy6d1BIjgAAAAAAAAAo3l9VwlxsAgDy8HaQRAFKisKKQoMdHJhaW4vcmV3YXJkQgoIARIAKgQAAIA+Sg0KCQoHc2NhbGFycyABN3Zz8zkA"
    "AAAAAAAAiwc38Qkt8ggDy8HaQRAFKiwKKgoNdHJhaW4vZW50cm9weUIKCAESACoEAADAP0oNCgkKB3NjYWxhcnMgAc+hu9s4AAAAAAAAAKN5"
    "fVcJ1PUIA8vB2kEQCiorCikKDHRyYWluL3Jld2FyZEIKCAESACoEAAAAP0oNCgkKB3NjYWxhcnMgAaH80Y85AAAAAAAAAIsHN/EJLfgIA8vB"
    "2kEQCiosCioKDXRyYWluL2VudHJvcHlCCggBEgAqBAAAwD9KDQoJCgdzY2FsYXJzIAFqYmyD"
)
TENSORBOARDX = b64decode(
    "GAAAAAAAAACjf0siCdF2DQPLwdpBGg1icmFpbi5FdmVudDoyv77AQiIAAAAAAAAAeBE9/QkmgQ0Dy8HaQRAFKhUKEwoMdHJhaW4vcmV3YXJk"
    "FQAAgD4KF31qIgAAAAAAAAB4ET39CYGGDQPLwdpBEAoqFQoTCgx0cmFpbi9yZXdhcmQVAAAAPzNpI5hWAAAAAAAAAE4t4rIJxowNA8vB2kEQ"
    "CipJCkcKJHRyYWluL2dlbmVyYXRlZF9zYW1wbGVzL3RleHRfc3VtbWFyeUIVCAcSBBICCAFCCzx0b29sX2NhbGw+SggKBgoEdGV4dELVCZw="
)
WANDB = b64decode(
    "OlcmQuG+AODqOSaEAAEIAoIBDiIMajN1MXIwbTVmMmFmwgwKCghxbm5iNGgzYYoBYQoIcW5uYjRoM2EaA3RveSIPCg0KBl93YW5kYoIBAnt9"
    "QgV0aHJlZWoCdm2KAQwIptic2AYQ6ImkzwKaASQaBCABaAEiBjMuMTEuNyoGMC4zMS4wagxsaW51eC14ODZfNjTH7q2cqgABCAoSpQEKFRIM"
    "dHJhaW4vcmV3YXJkggEEMC4yNQoVEg10cmFpbi9lbnRyb3B5ggEDMS41ChcSEXRyYWluL2dsb2JhbF9zdGVwggEBNQoMEgNvd24SAWGCAQE1"
    "CiUSCl90aW1lc3RhbXCCARYxLjc5NTYzMjE2Njg2MzQ0ODZlKzA5ChgSCF9ydW50aW1lggELMC4xNTU1NjAwOTIKCxIFX3N0ZXCCAQEwEgDD"
    "1RzsrAABCA0SpwEKJBIKX3RpbWVzdGFtcIIBFTEuNzk1NjMyMTY2ODY0NzU3ZSswOQoYEghfcnVudGltZYIBCzAuMTU2NjQzNDg0CgsSBV9z"
    "dGVwggEBMQoUEgx0cmFpbi9yZXdhcmSCAQMwLjUKFRINdHJhaW4vZW50cm9weYIBA05hTgoYEhF0cmFpbi9nbG9iYWxfc3RlcIIBAjEwCg0S"
    "A293bhIBYYIBAjEwEgIIAXfGdXeuAAEIEBKpAQoYEhF0cmFpbi9nbG9iYWxfc3RlcIIBAjE1Cg0SA293bhIBYYIBAjE1CiUSCl90aW1lc3Rh"
    "bXCCARYxLjc5NTYzMjE2Njg2NTc5MzVlKzA5ChgSCF9ydW50aW1lggELMC4xNTc2MzcxNzkKCxIFX3N0ZXCCAQEyChUSDHRyYWluL3Jld2Fy"
    "ZIIBBDAuNzUKFRINdHJhaW4vZW50cm9weYIBAzEuNRICCAI="
)


def read(path: Path, **options: object) -> list[Imported]:
    importer = find(Source(path), Options(**options))  # type: ignore[arg-type]
    assert importer is not None
    return importer.read(Source(path))


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def metric(run: Imported, name: str) -> dict[int, float]:
    return {r.step: r.metrics[name] for r in run.records if name in r.metrics}


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fails_in_one_way_only(path: Path, whole: bytes, examples: int = 60) -> None:
    """Change bytes of a file, cut it, and read what is left: it is no such file, broken, or has records."""

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(
        changes=st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=12),
        size=st.integers(0, len(whole)) | st.just(len(whole)),
    )
    def check(changes: list[tuple[int, int]], size: int) -> None:
        content = bytearray(whole)
        for at, byte in changes:
            content[at] = byte
        path.write_bytes(content[:size])
        try:
            importer = find(Source(path))
            imported = importer.read(Source(path)) if importer else []
        except ImportFailed:
            return
        assert all(run.records for run in imported)

    check()
