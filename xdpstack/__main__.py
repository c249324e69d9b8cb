"""``python -m xdpstack`` is ``xdpstack``."""

import sys

from xdpstack.cli import main

sys.exit(main())
