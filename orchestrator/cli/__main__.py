"""`python -m orchestrator.cli`: the command line without the installed script."""

import sys

from orchestrator.cli.main import main

sys.exit(main())
