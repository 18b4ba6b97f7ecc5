"""Whether there is a sandbox here: tests of what it holds back are skipped without, with the reason."""

import pytest

from stages.sandbox.bubblewrap import why_unavailable

TRUST = bool(why_unavailable())
"""Tests of what is the same with and without a sandbox run without one where there is none."""
needs_sandbox = pytest.mark.skipif(TRUST, reason=why_unavailable() or "there is a sandbox")
