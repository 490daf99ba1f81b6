"""A run of petseg that fits itself to the seconds that it is given (`--max-minutes`), and its scores at the end."""

import tempfile

from _learning import arguments, point, test_scores

import petseg
from petseg.training.telemetry import Clock

args = arguments()
with tempfile.TemporaryDirectory() as folder:
    run = {"shards": str(args.data / "shards"), "run_dir": f"{folder}/run", "seed": args.seed, "gallery": 0}
    run |= {"width": args.width} if args.width else {}
    result = petseg.train({**run, "max_minutes": args.seconds / 60})
trained, size = result.trained, result.trained.config.height_width[0]
scores, mirrored = (
    test_scores(args.data / "shards", size, lambda images, each=each: each.probabilities(images, each.config.amp))
    for each in (trained, trained.mirrored())
)
own, whole = (result.summary[name] for name in ("mean_iou", "seconds"))
point(
    Clock(seconds=result.summary["time"]),
    result.summary["epochs"],
    scores,
    own_size=own,
    whole=whole,
    mirrored=mirrored["mean_iou"],
)
