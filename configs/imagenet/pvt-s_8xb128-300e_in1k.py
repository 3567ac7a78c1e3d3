# paper: top-1 79.8
_base_ = [
    '../_base_/models/classifier_in1k.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/adamw_300e_in1k.py', '../_base_/classifier_runtime.py'
]
model = dict(backbone=dict(type='mmtok.PVT', arch='small'))
train_dataloader = dict(sampler=dict(num_repeats=3))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(pos_embed=dict(decay_mult=1.))))  # as its authors
