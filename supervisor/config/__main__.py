"""Print docs/configuration.md."""

import sys

from supervisor.config.page import page

sys.stdout.write(page())
