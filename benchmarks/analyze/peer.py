"""One peer over logs of JSON lines, with its defaults, in a process of its own: prints what it calls critical."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable


def rldoctor(path: str) -> bool:
    doctor = importlib.import_module("rl_doctor")
    return bool(doctor.diagnose(doctor.load_run(path)).worst >= doctor.Severity.CRITICAL)


def rlwatch(path: str) -> bool:
    """Its detectors as its monitor runs them; its command reads nothing but its own store."""
    config = importlib.import_module("rlwatch.config").RLWatchConfig()
    suite, critical = importlib.import_module("rlwatch.detectors").DetectorSuite(config), False
    names = {"entropy": "entropy", "kl_divergence": "kl", "reward_mean": "reward", "reward_std": "reward_std"}
    names |= {"loss": "loss", "grad_norm": "grad_norm"}
    with open(path) as file:
        for line in file:
            row = json.loads(line)
            told = {theirs: row.get(ours) for theirs, ours in names.items()}
            critical |= any(alert.severity == "critical" for alert in suite.check_step(int(row["step"]), **told))
    return critical


PEERS: dict[str, Callable[[str], bool]] = {"rldoctor": rldoctor, "rlwatch": rlwatch}

if __name__ == "__main__":
    judge = PEERS[sys.argv[1]]
    print(json.dumps({path: judge(path) for path in sys.argv[2:]}))
