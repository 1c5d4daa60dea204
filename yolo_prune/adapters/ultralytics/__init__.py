"""The Ultralytics host. Importing this package stops the host from pip-installing at run time."""

from __future__ import annotations

import os
import sys

os.environ["YOLO_AUTOINSTALL"] = "false"  # read by the host when it is imported
if "ultralytics.utils.checks" in sys.modules:  # it already was: the copy that its installer reads
    sys.modules["ultralytics.utils.checks"].AUTOINSTALL = False  # type: ignore[attr-defined]
