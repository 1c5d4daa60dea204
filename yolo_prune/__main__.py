"""``python -m yolo_prune`` is ``yolo-prune``."""

from __future__ import annotations

import sys

from yolo_prune.cli import main

sys.exit(main())
