"""Interventions: what the supervisor starts when an alarm says the run is breaking.

To add one: a file with a subclass of `interventions.base.Intervention`, and its line in the table. Outside
code is named `pkg.mod:Class`.
"""

from __future__ import annotations

INTERVENTIONS: dict[str, str] = {
    "erroneous": "collapsewatch.interventions.erroneous:Erroneous",
}
