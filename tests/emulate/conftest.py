import functools
import json

import pytest
from emulator_process import python, triton_missing


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """What each chip made of a set of cases: {chip: rows and kernels}. The chips run side by side."""
    if triton_missing():
        pytest.skip(triton_missing())

    @functools.cache
    def run(cases: str, of_sm_80: str | None = None) -> dict[str, dict]:
        sets = {"sm_80": of_sm_80 or cases, "sm_90": cases}
        folder = tmp_path_factory.mktemp("emulated")
        files = {chip: folder / f"{chip}.json" for chip in sets}
        running = {
            chip: python("-m", "tools.emulate", "--chip", chip, "--cases", sets[chip], "--json", file)
            for chip, file in files.items()
        }
        output = {chip: process.communicate()[0] for chip, process in running.items()}
        for chip, file in files.items():
            assert file.exists(), output[chip]
        return {chip: json.loads(file.read_text()) for chip, file in files.items()}

    return run
