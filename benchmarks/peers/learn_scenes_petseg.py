"""A run of petseg's `scenes` recipe that fits itself to its minutes, and its scores on whole images of val."""

import tempfile

from _learning import arguments, point

import petseg
from petseg.training.telemetry import Clock

args = arguments()
with tempfile.TemporaryDirectory() as folder:
    run = {"recipe": "scenes", "shards": str(args.data / "shards"), "run_dir": f"{folder}/run", "seed": args.seed}
    result = petseg.train({**run, "gallery": 0, "max_minutes": args.seconds / 60})
summary = result.summary
point(
    Clock(seconds=summary["time"]),
    summary["epochs"],
    {"mean_iou": summary["mean_iou"], "iou": summary["iou"]},
    whole=summary["seconds"],
)
