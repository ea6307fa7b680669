"""Run the command line as `python -m orchestrator.cli`, without the installed script."""

import sys
from pathlib import Path

# `-m` puts the working folder first, where a package `core` of the user's own would take the place of this product's.
if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[2]:
    del sys.path[0]

from orchestrator.cli.main import main

sys.exit(main())
