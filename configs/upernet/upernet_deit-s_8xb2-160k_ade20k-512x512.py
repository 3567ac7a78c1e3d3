# paper: mIoU 44.0
_base_ = [
    '../_base_/models/upernet_deit-s.py', '../_base_/datasets/ade20k_512x512.py', '../_base_/schedules/adamw_160k.py',
    '../_base_/mmseg_runtime.py'
]
