"""`python -m miniclip COMMAND …`, and so `torchrun … -m miniclip train …`."""

import sys

from miniclip.cli import main

sys.exit(main())
