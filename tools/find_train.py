"""Prints the training script of a package for dist_train.sh and slurm_train.sh: `find_train.py PACKAGE CONFIG`.

The package is looked up, not imported.
"""

import importlib.util
import sys
from pathlib import Path

PACKAGES = ('mmseg', 'mmdet')


def main(package: str, config: str) -> str:
    if not Path(config).is_file():
        sys.exit(f'mmtok: the config {config!r} is not there')
    if package == 'classifier':
        return str(Path(__file__).resolve().parent / 'train_classifier.py')
    if package not in PACKAGES:
        sys.exit(f'mmtok: no training script for {package!r}; choose from {", ".join(PACKAGES)}, classifier')
    spec = importlib.util.find_spec(package)
    if spec is None:
        sys.exit(f'mmtok: {package} is not installed for {sys.executable}: name the Python that has it with '
                 'PYTHON=/path/to/python')
    script = Path(spec.origin).parent / '.mim' / 'tools' / 'train.py'
    if not script.is_file():  # an editable installation has its tools beside the package
        script = Path(spec.origin).parents[1] / 'tools' / 'train.py'
    if not script.is_file():
        sys.exit(f'mmtok: {package} is installed without its tools ({script} is not there): install it with pip from '
                 'the package index, or clone it')
    return str(script)


if __name__ == '__main__':
    print(main(*sys.argv[1:3]))
