"""Says which versions are installed, whether they work together, and what mends it where not.

    python -m mmtok.check_env

Runs in a broken environment too: versions come from package metadata, and what could crash is imported in a
process of its own.
"""

import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata

FORKS = {'mmengine': 'onedl-mmengine', 'mmcv': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection',
         'mmsegmentation': 'onedl-mmsegmentation'}
SHOWN = ('torch', 'torchvision', 'numpy', 'opencv-python', 'timm', 'safetensors', *FORKS, 'pycocotools', 'mmtok')
PROBES = {
    'torch': 'import torch; print(torch.version.cuda or "none")',
    'gpu': 'import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none")',
    # Code for an earlier minor version of the same architecture runs too.
    'gpu known to torch': 'import torch; own = torch.cuda.is_available() and torch.cuda.get_device_capability(0); '
                          'known = [divmod(int(a[3:].rstrip("af")), 10) for a in torch.cuda.get_arch_list() '
                          'if a.startswith("sm_")]; '
                          'print(not own or any(k[0] == own[0] and k[1] <= own[1] for k in known))',
    'mmcv operators': 'import mmcv._ext; from mmcv.ops import get_compiling_cuda_version as v; print(v())',
    'mmseg': 'import mmseg.models',
    'mmdet': 'import mmdet.models',
}


@dataclass
class Environment:
    """What is installed: versions by distribution name (None where absent), and what the probes printed."""

    python: tuple[int, ...]
    versions: dict[str, str | None]
    probes: dict[str, str | None] = field(default_factory=dict)  # None: the probe failed
    errors: dict[str, str] = field(default_factory=dict)  # last line of what a failed probe said

    def has(self, name: str) -> bool:
        return bool(self.versions.get(name))

    def version(self, name: str) -> tuple[int, ...]:
        """Leading numbers of a version, () where the distribution is absent: '2.1.2+cu121' -> (2, 1, 2)."""
        return tuple(int(part) for part in re.findall(r'\d+', (self.versions.get(name) or '').split('+')[0])[:3])


def find_problems(env: Environment) -> list[tuple[str, str]]:
    """(what is wrong, the command that mends it) of each combination known not to work."""
    problems = []

    def problem(condition, sentence, command):
        if condition:
            problems.append((sentence, command))

    torch, numpy = env.version('torch'), env.version('numpy')
    if not torch:
        return [('torch is not installed', 'pip install torch torchvision')]
    if env.probes.get('torch') is None:
        return [(f'torch {env.versions["torch"]} does not import ({env.errors.get("torch", "")})',
                 f'pip install --force-reinstall torch=={env.versions["torch"]}')]
    problem(torch < (2, 1), f'torch {env.versions["torch"]} is older than 2.1',
            'create a new environment with torch 2.1 or newer')

    fitting = f'0.{torch[1] + 15}'  # torch 2.1 goes with torchvision 0.16, torch 2.8 with 0.23
    vision = env.version('torchvision')
    problem(torch[0] == 2 and vision[:2] != (0, torch[1] + 15),
            f'torchvision {env.versions.get("torchvision") or "(not installed)"} does not match torch '
            f'{env.versions["torch"]}, which goes with torchvision {fitting}',
            f"pip install --no-deps 'torchvision=={fitting}.*'")
    problem(not numpy, 'numpy is not installed', "pip install 'numpy<2'" if torch < (2, 3) else 'pip install numpy')
    problem(torch < (2, 3) and numpy >= (2,),
            f'torch {env.versions["torch"]} was built for numpy 1, but numpy {env.versions.get("numpy")} is installed',
            "pip install 'numpy<2' 'opencv-python<4.12'")
    problem(env.version('opencv-python') >= (4, 12) and numpy and numpy < (2,),
            f'opencv-python {env.versions.get("opencv-python")} needs numpy 2, but numpy {env.versions.get("numpy")} '
            'is installed', "pip install 'opencv-python<4.12'")
    problem(env.version('timm') < (1, 0, 20),
            f'timm {env.versions.get("timm") or "is not installed; mmtok"} needs to be 1.0.20 or newer'
            if env.has('timm') else 'timm is not installed, and every trunk comes from it',
            "pip install 'timm>=1.0.20'")
    problem(env.probes.get('gpu known to torch') == 'False',
            f'torch {env.versions["torch"]} has no kernels for this GPU ({env.probes.get("gpu")})',
            'use the onedl stack: STACK=onedl make test')

    for official, fork in FORKS.items():
        problem(env.has(official) and env.has(fork), f'{official} and its fork {fork} overwrite each other',
                f'pip uninstall -y {official} {fork}, then install one of them again')
    official = [name for name in FORKS if env.has(name)]
    problem(official and env.python >= (3, 12),
            f'the official {", ".join(official)} do not support Python {env.python[0]}.{env.python[1]}',
            'use Python 3.10 or 3.11, or the forks: pip install -r requirements/onedl.txt')
    problem(env.has('mmengine') and torch >= (2, 6),
            f'torch {env.versions["torch"]} refuses to load the checkpoints that the official mmengine writes',
            'install torch<2.6, or the fork: pip uninstall -y mmengine && pip install onedl-mmengine')
    mmcv = env.version('mmcv')
    users = [name for name in ('mmdet', 'mmsegmentation') if env.has(name)]
    problem(mmcv and users and not (2, 0) <= mmcv < (2, 2),
            f'mmcv {env.versions.get("mmcv")} is outside of what {" and ".join(users)} accept (2.0 to 2.1)',
            "pip install --no-build-isolation 'mmcv==2.1.0'")
    problem(not (env.has('mmengine') or env.has('onedl-mmengine')), 'mmengine is not installed',
            'pip install mmengine (or onedl-mmengine with torch 2.6 and up)')

    name = next((name for name in ('mmcv', 'onedl-mmcv') if env.has(name)), None)
    if name is None:
        problem(True, 'mmcv is not installed', 'pip install --no-build-isolation '
                + ("'mmcv==2.1.0'" if torch < (2, 6) else 'onedl-mmcv'))
    else:
        rebuild = (f'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
                   f'{name}=={env.versions[name]}')
        operators = env.probes.get('mmcv operators')
        problem(operators is None, f"{name}'s compiled operators do not load "
                f'({env.errors.get("mmcv operators", "")}): they are missing or were built for another torch', rebuild)
        problem(operators == 'not available' and env.probes.get('gpu') not in (None, 'none'),
                f"{name}'s operators were compiled without CUDA, but there is a GPU: detectors will stop",
                f'install the CUDA toolkit {env.probes.get("torch")}, then: FORCE_CUDA=1 {rebuild}')
    for module, names in (('mmseg', ('mmsegmentation', 'onedl-mmsegmentation')),
                          ('mmdet', ('mmdet', 'onedl-mmdetection'))):
        missing = re.search(r"No module named '(\w+)'", env.errors.get(module, ''))
        problem(any(map(env.has, names)) and env.probes.get(module) is None and not problems,
                f'{module} does not import ({env.errors.get(module, "")})',
                f'pip install {missing.group(1)}' if missing else f'python -c "import {module}.models"')
    return problems


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look() -> Environment:
    """The environment of this interpreter."""
    names = {*SHOWN, *FORKS.values()}
    versions = {name: version_of(name) for name in names}
    versions['opencv-python'] = versions['opencv-python'] or version_of('opencv-python-headless')
    env = Environment(sys.version_info[:3], versions)
    for name, code in PROBES.items() if versions['torch'] else ():
        run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
        out, errors = run.stdout.strip().splitlines(), run.stderr.strip().splitlines()
        env.probes[name] = (out[-1] if out else 'ok') if run.returncode == 0 else None
        if run.returncode:
            env.errors[name] = errors[-1][:200] if errors else f'exit status {run.returncode}'
    return env


def main() -> int:
    env = look()
    print(f'{"Python":20} {".".join(map(str, env.python))}')
    for name in SHOWN:
        fork = FORKS.get(name)
        if fork and env.has(fork):
            name = fork
        print(f'{name:20} {env.versions.get(name) or "not installed"}')
    for name in ('torch', 'gpu', 'mmcv operators'):
        label = {'torch': 'CUDA of torch', 'gpu': 'GPU', 'mmcv operators': 'CUDA of mmcv'}[name]
        print(f'{label:20} {env.probes.get(name) or "does not load"}')
    problems = find_problems(env)
    for sentence, command in problems:
        print(f'\nPROBLEM: {sentence}.\n  Mend it with: {command}')
    print('\nThis combination works.' if not problems else f'\n{len(problems)} problem(s) found.')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
