"""`python -m hpcrl.cli`: how a launcher starts a rank."""

import sys

from hpcrl.cli import main

sys.exit(main())
