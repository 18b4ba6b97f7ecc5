"""`lensmith bench truth` measures what it says: the loop has one input a pass, and nothing stays changed."""

from pathlib import Path

import yaml

from stages.benchmarks.truth import bench_truth, median_ratio
from stages.tasks import black_box, directions


def test_a_loop_is_slower_and_leaves_everything_as_it_was(root: Path) -> None:
    file = root / "params" / "tasks.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    small = {"region_shapley": ["digits_mlp"], "trigger_recovery": ["digits_mlp"]}
    for name, settings in params["families"].items():
        settings["targets"] = small.get(name, ["nowhere"])
    file.write_text(yaml.safe_dump(params), encoding="utf-8")
    (row,) = bench_truth(families=("region_shapley", "trigger_recovery"))  # the other is about variants
    assert (row.family, row.target, row.loop_inputs_per_pass) == ("region_shapley", "digits_mlp", 1.0)
    assert row.inputs_per_pass > 100 and row.ratio > 3 and 0 < row.share_of_peak < 1
    assert median_ratio([row]) == row.ratio
    assert black_box.CHUNK == directions.CHUNK == 256
