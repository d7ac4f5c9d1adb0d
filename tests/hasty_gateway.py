"""The gateway with less patience and less room than it has, so that tests reach the limits soon."""

import os
import sys
from functools import partial

from gateway import command, pools, server, streams

QUEUE_LIMIT = 8

if __name__ == "__main__":
    vars(streams)["KEEP_ALIVE_SECONDS"] = 0.1
    vars(pools)["SHRINK_SECONDS"] = 0.3
    vars(server)["Pool"] = partial(pools.Pool, queue_limit=QUEUE_LIMIT)
    os._exit(command.main(sys.argv[1:]))
