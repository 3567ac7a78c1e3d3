# paper: mIoU 45.8
_base_ = [
    '../_base_/models/upernet_swin-t.py', '../_base_/datasets/ade20k_512x512.py', '../_base_/schedules/adamw_160k.py',
    '../_base_/mmseg_runtime.py'
]
