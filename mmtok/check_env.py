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
    'opencv': 'import cv2',
    'mmengine': 'import mmengine',
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
        pins = ("torch==2.1.2 torchvision==0.16.2 'numpy<2'" if env.python < (3, 12) else
                'torch==2.8.0 torchvision==0.23.0')
        return [('torch is not installed', f'pip install {pins}, then run this again for what goes with it')]
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
            f'timm {env.versions["timm"]} needs to be 1.0.20 or newer' if env.has('timm') else
            'timm is not installed, and every trunk comes from it', "pip install 'timm>=1.0.20'")
    problem(env.probes.get('gpu known to torch') == 'False',
            f'torch {env.versions["torch"]} has no kernels for this GPU ({env.probes.get("gpu")})',
            'use the onedl stack: STACK=onedl make test')

    for official, fork in FORKS.items():
        problem(env.has(official) and env.has(fork), f'{official} and its fork {fork} overwrite each other',
                f'pip uninstall -y {official} {fork}, then install one of them again')
    official = [name for name in FORKS if env.has(name)]
    forks = [fork for fork in FORKS.values() if env.has(fork)]
    problem(official and forks and not any(env.has(name) and env.has(fork) for name, fork in FORKS.items()),
            f'{", ".join(official)} and the forks {", ".join(forks)} are mixed', 'install one family only: pip '
            f'uninstall -y {" ".join(forks)} && pip install -r requirements/openmmlab.txt')
    compiled = [name for name in official if name != 'mmengine']
    problem(compiled and env.python >= (3, 12),
            f'the official {", ".join(compiled)} do not support Python {env.python[0]}.{env.python[1]}',
            'use Python 3.10 or 3.11, or the forks: pip install -r requirements/onedl.txt')
    problem(env.has('mmengine') and torch >= (2, 6),
            f'torch {env.versions["torch"]} refuses to load the checkpoints that the official mmengine writes',
            'install torch<2.6, or the fork: pip uninstall -y mmengine && pip install onedl-mmengine')
    mmcv = env.version('mmcv')
    users = [name for name in ('mmdet', 'mmsegmentation') if env.has(name)]
    problem(mmcv and users and not (2, 0) <= mmcv < (2, 2),
            f'mmcv {env.versions.get("mmcv")} is outside of what {" and ".join(users)} accept (2.0 to 2.1)',
            "pip install --no-build-isolation 'mmcv==2.1.0'")
    has_engine = env.has('mmengine') or env.has('onedl-mmengine')
    problem(not has_engine, 'mmengine is not installed',
            'pip install mmengine (or onedl-mmengine with torch 2.6 and up)')
    has_opencv = env.has('opencv-python')
    problem(not has_opencv, 'opencv-python is not installed, and mmengine needs it',
            "pip install 'opencv-python<4.12'" if torch < (2, 3) else 'pip install opencv-python')
    problem(has_opencv and env.probes.get('opencv') is None, f'opencv does not import ({env.errors.get("opencv", "")})',
            'pip uninstall -y opencv-python && pip install opencv-python-headless'
            + ("'<4.12'" if torch < (2, 3) else ''))
    problem(has_engine and env.probes.get('mmengine') is None,
            f'mmengine does not import ({env.errors.get("mmengine", "")})', install_missing(env, 'mmengine'))
    sound = has_engine and has_opencv and env.probes.get('opencv') and env.probes.get('mmengine')

    name = next((name for name in ('mmcv', 'onedl-mmcv') if env.has(name)), None)
    if name is None:
        users = [user for user in ('mmdet', 'mmsegmentation') if env.has(user) or env.has(FORKS[user])]
        problem(users, f'mmcv is not installed, and {" and ".join(users)} cannot do without',
                'pip install --no-build-isolation ' + ("'mmcv==2.1.0'" if torch < (2, 6) else 'onedl-mmcv'))
    else:
        rebuild = (f'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
                   f'{name}=={env.versions[name]}')
        operators = env.probes.get('mmcv operators')
        problem(sound and operators is None, f"{name}'s compiled operators do not load "
                f'({env.errors.get("mmcv operators", "")}): they are missing or were built for another torch', rebuild)
    for module, names in (('mmseg', ('mmsegmentation', 'onedl-mmsegmentation')),
                          ('mmdet', ('mmdet', 'onedl-mmdetection'))):
        problem(any(map(env.has, names)) and env.probes.get(module) is None and not problems,
                f'{module} does not import ({env.errors.get(module, "")})', install_missing(env, module))
    return problems


def install_missing(env: Environment, probe: str) -> str:
    """The command that mends a failed import, as far as its message tells."""
    missing = re.search(r"No module named '(\w+)", env.errors.get(probe, ''))
    stack = 'onedl' if env.has('onedl-mmengine') else 'openmmlab'
    return f'pip install {missing.group(1)}' if missing else f'pip install -r requirements/{stack}.txt'


def find_notes(env: Environment) -> list[str]:
    """What works less far than it could."""
    notes = []
    gpu = env.probes.get('gpu')
    if env.probes.get('mmcv operators') == 'not available' and gpu not in (None, 'none'):
        notes.append(f"mmcv's operators were compiled without CUDA, but there is a GPU ({gpu}): UperNet and "
                     f'pretraining work, detectors stop. With the CUDA toolkit '
                     f'{env.probes.get("torch")} installed: '
                     'FORCE_CUDA=1 pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps mmcv')
    missing = [name for name in ('mmsegmentation', 'mmdet') if not (env.has(name) or env.has(FORKS[name]))]
    notes += [f'{name} is not installed: its configs and tools are not at hand' for name in missing]
    if len(missing) == 2:
        notes.append('backbones (but for PVT, which is built on mmdet) and the pretraining of classifiers work without '
                     'both, and without mmcv')
    return notes


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
        try:
            run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                                 timeout=300)
        except subprocess.TimeoutExpired:
            env.probes[name], env.errors[name] = None, 'no answer within 300 seconds'
            continue
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
    cuda = env.probes.get('mmcv operators')
    operators = 'CPU only' if cuda == 'not available' else f'CUDA {cuda}' if cuda else 'do not load'
    if not (env.has('mmcv') or env.has('onedl-mmcv')):
        operators = 'not installed'
    for label, value in (('CUDA of torch', env.probes.get('torch')), ('GPU', env.probes.get('gpu')),
                         ('operators of mmcv', operators)):
        print(f'{label:20} {value or "unknown"}')
    for note in find_notes(env):
        print(f'\nNOTE: {note}.')
    problems = find_problems(env)
    for sentence, command in problems:
        print(f'\nPROBLEM: {sentence}.\n  Mend it with: {command}')
    print('\nThis combination works.' if not problems else f'\n{len(problems)} problem(s) found.')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
