"""What is shipped with a job: our packages and the run, and how its driver is started."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.versions import CODE, HOME

if TYPE_CHECKING:
    from launcher.config.run_config import RunConfig


RUN_FILE = "run.yaml"


# The raylet is the parent of our parent. It knows which Python its workers are started with, and of which cluster it
# is: RAY_ADDRESS, which Ray gives a job, names the head that was started last on this machine, maybe another one.
ENTRYPOINT = (
    r"node=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$PPID/status); "
    r"""of() { tr '\0' '\n' < /proc/$node/cmdline | sed -n "s/^--$1=\([^ ]*\).*/\1/p"; }; """
    r"python=$(of python_worker_command); head=$(of gcs-address); "
    rf'exec "${{python:-python3}}" -m launcher train {RUN_FILE} --address "${{head:-auto}}"'
)


def stage(config: RunConfig, folder: Path) -> None:
    """Our packages and the run, as they are shipped."""
    from launcher.config.loading import to_yaml

    for package in CODE:
        shutil.copytree(HOME / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / RUN_FILE).write_text(to_yaml(config))
