"""``python -m oneround``: the command line."""

import sys

from oneround.cli import main

sys.exit(main())
