"""`python -m gptpipe.node INVITATION`: one node of a training on several machines, as a JobSet's pods run it."""

import sys

from gptpipe.launch.node import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
