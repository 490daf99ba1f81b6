"""A run of petseg, logged to mlflow: parameters, a curve per class, and the report.

python examples/track_mlflow.py --shards shards/drawn
"""

from __future__ import annotations

import argparse
from typing import Any

import mlflow

import petseg


class MlflowReporter(petseg.Reporter):
    """Logs what happens in a run to the mlflow run that is active."""

    def started(self, run: Any, config: petseg.TrainConfig) -> None:
        """Log the options."""
        mlflow.log_params(config.to_dict())

    def epoch_ended(self, record: dict[str, Any]) -> None:
        """Log the scores of an epoch."""
        scores = {"train_loss": record["train_loss"], "images_per_s": record["images_per_s"]}
        if record["val"]:
            scores["val_mean_iou"] = record["val"]["mean_iou"]
        mlflow.log_metrics({name: value for name, value in scores.items() if value is not None}, step=record["epoch"])


def main() -> None:
    """Train, and log it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--run-dir", default="runs/mlflow")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", default="128")
    args = parser.parse_args()
    options = {"shards": args.shards, "epochs": args.epochs, "size": args.size, "run_dir": args.run_dir}
    mlflow.set_experiment("petseg")
    with mlflow.start_run():
        result = petseg.train(options, callbacks=[MlflowReporter()])
        mlflow.log_metric("test_mean_iou", result.summary["mean_iou"])
        mlflow.log_artifact(str(result.run.path / "report.html"))


if __name__ == "__main__":
    main()
