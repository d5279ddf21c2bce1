"""Run a command; print its wall seconds, CPU seconds and peak MB as the last line."""

import json
import os
import sys
import time

begin = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(process, 0)
cost = [time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3]
print("\n" + json.dumps(cost))
sys.exit(os.waitstatus_to_exitcode(status))
