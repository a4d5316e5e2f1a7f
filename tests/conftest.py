"""No test touches the user's cache, and none reads what an earlier run left there."""

import os
import tempfile

os.environ["RAY_FED_CACHE"] = tempfile.mkdtemp(prefix="ray-fed-tests-")
