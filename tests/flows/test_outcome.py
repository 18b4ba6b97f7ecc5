"""One line out of what a failed `dvc repro` printed."""

from flows.outcome import cause_of, computation_of, state_of

DVC = "ERROR: failed to reproduce 'x@a': failed to run: python -m stages.x a, exited with {}"


def test_error_line_of_a_stage_is_the_cause_and_its_exit_code_says_whose_fault() -> None:
    said = ["Running stage 'x@a':", "x: step 1", "error: params/x.yaml: unknown key 'stepz'", DVC.format(2)]
    assert cause_of(said) == ("params/x.yaml: unknown key 'stepz'", True)
    assert cause_of([*said[:-1], DVC.format(1)])[1] is False


def test_a_traceback_gives_its_last_line() -> None:
    said = ["Traceback (most recent call last):", '  File "x.py", line 1', "ValueError: bad shape", DVC.format(1)]
    assert cause_of(said) == ("ValueError: bad shape", False)
    said[2] = "stages.errors.UserError: unknown key 'stepz'"
    assert cause_of(said) == ("unknown key 'stepz'", True)


def test_memory_disk_and_silence() -> None:
    assert "memory" in cause_of(["Running stage 'x':", DVC.format(-9)])[0]
    assert "no space left" in cause_of(["OSError: [Errno 28] No space left on device: 'data/x'", DVC.format(1)])[0]
    assert cause_of([]) == ("it printed nothing", False)
    assert cause_of(["ERROR: output 'data/x' is a symlink"]) == ("output 'data/x' is a symlink", False)


def test_executed_or_cached() -> None:
    assert state_of(["Running stage 'x':", "> python"]) == "executed"
    assert state_of(["Stage 'x' didn't change, skipping"]) == "cached"
    assert state_of(["Stage 'x' is cached - skipping run, checking out outputs"]) == "cached"
    assert computation_of(["computation_s=1.25", "text", "computation_s=2"]) == 3.25
    assert computation_of(["text"]) is None
