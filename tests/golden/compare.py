"""Compares a record of losses with the golden one: bit for bit on a like machine, else as far as rounding lets it.

Training is chaotic: Adam turns a gradient near zero into a whole step, whichever its sign. With AVX2 in place of
AVX-512 (same versions, same processor) the numbers of pretraining differed by up to 2e-5 of themselves in step 1 and
5e-4 in step 2, some by a tenth and more from about step 10 on, and finetuning began from another model. So on another
machine only the first steps of the first stage can be held to the record; of the rest it holds the schedule and the
names of terms.
"""

import math
from typing import Any

# Relative, for steps 1 and 2 of pretraining: some twenty times what was seen (2e-5 and 5e-4).
STEP_TOLERANCES = (5e-4, 1e-2)
# These come from the configuration and the plan of the data alone.
SCHEDULE = ("step", "epoch", "lr")
SCHEDULE_TOLERANCE = 1e-12
STAGE_FROM_BASE = "pretrain"
# Told, but not decisive: nobody has seen yet whether processors of one vendor and capability differ.
NOT_DECISIVE = ("cpu_model",)
MENDING = (
    "If the change of numbers is meant, write them anew with `python -m tests.golden.record`, on the machine of the "
    "record if you can, and say in the commit why they changed."
)


def difference(golden: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first difference in the order in which the numbers were made, as a message; None if there is none."""
    there, here = golden["machine"], new["machine"]
    differing = [name for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name)]
    told = "; ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in differing)
    exact = set(differing) <= set(NOT_DECISIVE)
    if exact:
        how = "bit for bit: versions, vendor and capability of the processor are the record's"
    else:
        first, second = STEP_TOLERANCES
        how = f"to a relative {first:g} in step 1 and {second:g} in step 2 of pretraining: another machine"
    found = _first(golden["runs"], new["runs"], exact)
    return None if found is None else f"{found}. Compared {how}{f' ({told})' if told else ''}. {MENDING}"


def _first(golden: dict[str, Any], new: dict[str, Any], exact: bool) -> str | None:
    if list(golden) != list(new):
        return f"the record has the runs {list(golden)}, now there are {list(new)}"
    for run, rows in golden.items():
        # Rows before their number: where a run stops early, the last step that it has may tell more.
        for number, (old_row, new_row) in enumerate(zip(rows, new[run], strict=False), start=1):
            for term in dict.fromkeys([*old_row, *new_row]):
                old, now = old_row.get(term), new_row.get(term)
                tolerance = 0.0 if exact else _tolerance(run, number, term)
                if old is None or now is None or not (old == now or math.isclose(old, now, rel_tol=tolerance)):
                    return f"{run}, step {number}, {term}: {old!r} in the record, {now!r} now"
        if len(rows) != len(new[run]):
            return f"{run}: {len(rows)} steps in the record, {len(new[run])} now"
    return None


def _tolerance(run: str, step: int, term: str) -> float:
    """Relative tolerance on another machine; infinite where nothing can be said."""
    if term in SCHEDULE:
        return SCHEDULE_TOLERANCE
    if run.startswith(STAGE_FROM_BASE) and step <= len(STEP_TOLERANCES):
        return STEP_TOLERANCES[step - 1]
    return math.inf
