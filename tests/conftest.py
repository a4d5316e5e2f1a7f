"""No test touches the user's cache, none reads what an earlier run left there, and none fails because the machine is
busy."""

import os
import tempfile

from hypothesis import HealthCheck, settings

os.environ["RAY_FED_CACHE"] = tempfile.mkdtemp(prefix="ray-fed-tests-")

settings.register_profile(
    "busy machine", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")
