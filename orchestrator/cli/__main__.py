"""Run the command line as `python -m orchestrator.cli`, without the installed script."""

import sys

from orchestrator.cli.main import main

sys.exit(main())
