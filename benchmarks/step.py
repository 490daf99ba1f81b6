"""How fast one training step is, by itself: from the notebook's loop to petseg's, one change at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness import Contender, Row, number, peer, ratio, run_children

LOSS_TOLERANCE = 0.03
"""Relative; bf16 and another order of sums move the first loss by less."""

RECIPES = {"seed": "the notebook's network", "default": "petseg's U-Net"}
LADDER = {
    "channels_last": "channels_last", "bf16": "bf16", "fused": "fused optimiser", "compile": "torch.compile",
    "graphs": "CUDA graphs",
}  # fmt: skip
"""Changes to the notebook's loop, as `peers/step.py` and as people call them."""

CEILINGS = {"float32": "ceiling: fp32 matrix product", "bfloat16": "ceiling: bf16 matrix product"}
NOTEBOOK, OURS, COMPILED = "the notebook's loop", "petseg", "petseg, compiled"


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender."""

    name: str
    options: tuple[str, ...]
    kind: str


def entries(*, peers: bool, compiled: bool) -> list[Entry]:
    """The contenders for one network, each rung of the ladder on top of those before it.

    Args:
        peers: the notebook's loop and the changes to it too.
        compiled: what compiles too; that takes half a minute each on a CPU.
    """
    rungs, changes = [Entry(NOTEBOOK, ("--loop", "notebook"), "notebook")], ""
    for change, name in LADDER.items():
        changes = f"{changes},{change}".lstrip(",")
        if compiled or change not in {"compile", "graphs"}:
            rungs.append(Entry(f"+ {name}", ("--loop", "notebook", "--changes", changes), "library"))
    ours = [Entry(OURS, ("--loop", "petseg"), "petseg")]
    if compiled:
        ours.append(Entry(COMPILED, ("--loop", "petseg", "--compile", "on"), "petseg"))
    return [*(rungs if peers else []), *ours]


def run_network(
    recipe: str,
    size: int,
    batch: int,
    contenders: Sequence[Entry],
    *,
    repeats: int,
    seconds: float,
    progress: Callable[[str], None],
) -> list[Row]:
    """Measure all contenders on one network, and the device's matrix products beside them.

    Args:
        recipe: whose network it is.
        size: height and width of the images in pixels.
        batch: samples a step.
        contenders: the loops.
        repeats: windows of each.
        seconds: length of a window; one step at least.
        progress: called with a contender's name after each of its steps.
    """
    facts = {
        "cell": RECIPES[recipe], "size": size, "batch": batch,
        "chart": f"One step of {RECIPES[recipe]}, {size} px, batch {batch}",
    }  # fmt: skip
    rows = {
        each.name: Row(name=each.name, unit="images/s", facts={**facts, "kind": each.kind}) for each in contenders
    } | {name: Row(name=name, unit="images/s", facts={**facts, "kind": "ceiling"}) for name in CEILINGS.values()}
    shared = ["--recipe", recipe, "--size", str(size), "--batch", str(batch)]
    commands = {each.name: [*peer("step.py"), *shared, *each.options] for each in contenders}
    commands |= {name: [*peer("matmul.py"), "--size", "0", "--dtype", kind] for kind, name in CEILINGS.items()}
    losses: dict[str, float] = {}

    def check(row: Row, contender: Contender) -> str:
        answer = contender.ask(skip=1, timed=0)
        losses[row.name] = answer.get("first_loss", 0.0)
        expected = losses.get(NOTEBOOK)
        if row.facts["kind"] == "ceiling" or expected is None or abs(losses[row.name] / expected - 1) < LOSS_TOLERANCE:
            return ""
        if row.facts["kind"] == "petseg":
            return "with its augmentation, Dice loss, clipping and averaged weights"
        return f"its first loss is {losses[row.name]:.4f}, the notebook's is {expected:.4f}"

    run_children(rows, commands, repeats=repeats, seconds=seconds, skip=0, least=1, check=check, progress=progress)
    _share(list(rows.values()))
    return list(rows.values())


def _share(rows: list[Row]) -> None:
    """Matrix products as images a second, and every contender's share of the best of them."""
    gflop = next((row.facts["gflop_an_image"][0] for row in rows if row.facts.get("gflop_an_image")), None)
    if gflop is None:
        return
    best = 0.0
    for row in rows:
        if made := row.facts.pop("gflop_a_product", None):
            row.samples = [sample * made[0] / gflop for sample in row.samples]
            best = max(best, float(row.to_dict()["median"]))
    for row in rows:
        for key in ("gflop_an_image", "first_loss"):
            row.facts.pop(key, None)
        if row.samples:
            speed = float(row.to_dict()["median"])
            row.facts |= {"gflop_an_image": gflop, "gflops_per_s": speed * gflop}
            row.facts["detail"] = f"{number(speed * gflop)} GFLOP/s" + (
                f", {100 * speed / best:.0f}% of the best matrix product" if best else ""
            )


def ratios(rows: Sequence[Row]) -> dict[str, float | None]:
    """The best of petseg over the notebook's loop, and over the matrix product, for each network."""
    made: dict[str, float | None] = {}
    for recipe, label in RECIPES.items():
        mine = [row for row in rows if row.facts["cell"] == label]
        name = "unet" if recipe == "default" else recipe
        made[f"notebook_{name}"] = ratio(mine, [OURS, COMPILED], [NOTEBOOK])
        made[f"ladder_{name}"] = ratio(
            mine, [OURS, COMPILED], [row.name for row in mine if row.facts["kind"] == "library"]
        )
        made[f"ceiling_{name}"] = ratio(mine, [OURS, COMPILED], list(CEILINGS.values()))
    return made
