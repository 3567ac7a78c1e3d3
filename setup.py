from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = {}
exec((ROOT / 'mmtok' / 'version.py').read_text(), VERSION)

setup(
    name='mmtok',
    version=VERSION['__version__'],
    description='MoTo and TokenProp: better tokenizers for vision transformers, as an OpenMMLab plugin',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmtok', 'mmtok.*']),
    python_requires='>=3.10',
    # Nothing that depends on torch is required: pip would be free to replace the torch that the compiled
    # mmcv of an existing environment needs. `python -m mmtok.check_env` says what is missing.
    install_requires=['numpy'],
    extras_require={
        'timm': ['timm>=1.0.20'],
        'shards': ['webdataset', 'datasets'],  # images that have outgrown one disk: wds/, hfds/, hfids/
        'openmmlab': ['timm>=1.0.20', 'mmengine>=0.10.7', 'mmcv>=2.1.0,<2.2.0', 'mmdet>=3.3.0',
                      'mmsegmentation>=1.2.2', 'ftfy', 'regex'],
        'onedl': ['timm>=1.0.20', 'onedl-mmengine>=0.10.12', 'onedl-mmcv>=2.3.6', 'onedl-mmdetection>=3.5.1',
                  'onedl-mmsegmentation>=1.4.2', 'ftfy', 'regex'],
    },
)
