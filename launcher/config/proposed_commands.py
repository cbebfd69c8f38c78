"""What is proposed to type after a failure: whole commands, with nothing left to fill in, quoted for a shell.

    slower(config)              longreel train runs/mine/config.yaml optimizer.learning_rate=0.0001
    filled("... DATASET ...")   longreel data check datasets/mine --repair
    setting("out", "a: b")      "out='a: b'"

A rank knows its rule and its value; which files the run is made of is known to who sees it through.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from parallel import shell

if TYPE_CHECKING:
    from launcher.config.run_config import RunConfig

LOWER = 0.1  # of a rate at which numbers were not finite
LOWER_RATE = "a lower optimizer.learning_rate, or look at the samples of these steps"
CHECK = "longreel data check DATASET --repair"


def train(run: Path, *settings: str) -> str:
    """The command that goes on with a run, with other settings on top."""
    return shell.join(["longreel", "train", str(run / "config.yaml"), *settings])


def setting(key: str, value: Any) -> str:
    """A setting of a run as a word to type: its value is YAML, and the whole is a word of a shell."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False)
    text = text.removesuffix("\n").removesuffix("\n...").removesuffix("...").strip()
    return shell.quote(f"{key}={text}")


def slower(run: Path, rate: Any) -> str:
    """Go on with a tenth of the learning rate; with a place for it where nobody knows the rate."""
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < float("inf"):
        return train(run)
    return train(run, f"optimizer.learning_rate={LOWER * rate:.3g}")


def check_data(config: RunConfig) -> str:
    """Look at each dataset of a run and mend it."""
    folders = dict.fromkeys(str(folder) for data in config.data.merged() for folder in data.folders)
    return " && ".join(shell.join(["longreel", "data", "check", folder, "--repair"]) for folder in folders)


def filled(remedy: str, config: RunConfig) -> str:
    """A remedy with the datasets of the run where it only says DATASET."""
    return remedy.replace(CHECK, check_data(config))
