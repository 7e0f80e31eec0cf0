"""Who may import whom (pyproject.toml, [tool.importlinter]), and what must not be imported to read settings."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_packages_import_only_what_the_rules_allow():
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_folders_of_kernels_and_cluster_are_no_packages_themselves():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "cluster" / "__init__.py").exists()


def test_settings_and_presets_import_nothing_heavy():
    code = (
        "import sys, flamscale, flamscale.config, flamscale.presets, flamscale.command_line\n"
        "print(sorted({'torch', 'transformers', 'ray', 'deepspeed', 'av'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
