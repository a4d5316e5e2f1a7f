"""No test touches the user's cache, none reads what an earlier run left there, and none fails because the machine is
busy."""

import os
import tempfile

from hypothesis import HealthCheck, settings

os.environ["RAY_FED_CACHE"] = tempfile.mkdtemp(prefix="ray-fed-tests-")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of torch that wait for each other on busy cores take minutes

settings.register_profile(
    "busy machine", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")
