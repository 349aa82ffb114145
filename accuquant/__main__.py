"""Run the command line as `python -m accuquant`."""

import sys

from accuquant.cli.main import main

sys.exit(main())
