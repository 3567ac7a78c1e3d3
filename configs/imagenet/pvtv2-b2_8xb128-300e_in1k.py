# paper: top-1 82.0
_base_ = [
    '../_base_/models/classifier_in1k.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/adamw_300e_in1k.py', '../_base_/classifier_runtime.py'
]
model = dict(backbone=dict(type='mmtok.PVTv2', arch='b2'))
train_dataloader = dict(sampler=dict(num_repeats=3))
