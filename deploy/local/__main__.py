"""`python -m deploy.local fetch`: have Kafka's jars in the cache before anybody waits for them."""

import sys

from deploy.local.kafka import classpath
from deploy.local.processes import StackError

try:
    classpath(lambda line: print(f"· {line}", file=sys.stderr))
except StackError as error:
    sys.exit(f"hotline: {error}")
