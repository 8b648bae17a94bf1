"""What ranks say last, on real processes."""

from __future__ import annotations

from tests.local.home import RING, RunHome


def test_a_gpu_that_a_rank_names_costs_its_node_once(home: RunHome) -> None:
    """Its own line says so: the node is swapped after the first attempt."""
    trainer = home.path / "ecc.py"
    trainer.write_text(
        "import os, pathlib, runpy, sys\n"
        f"gone = pathlib.Path({str(home.path / 'gone')!r})\n"
        "if os.environ['RANK'] == '2' and not gone.exists():\n"
        "    gone.touch()\n"
        "    sys.exit('RuntimeError: CUDA error: uncorrectable ECC error encountered')\n"
        f"sys.argv[0] = {str(RING)!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    job = home.job()
    job.write_text(job.read_text().replace(str(RING), str(trainer)))
    home.superv("launch", "--detach", str(job))
    seen = home.at_step(3, attempt=2)
    assert [one["culprits"] for one in seen["incidents"]] == [["local-2"]]
    assert seen["incidents"][0]["confidence"] == "witnessed"
    assert "uncorrectable ECC error" in seen["incidents"][0]["why"]
