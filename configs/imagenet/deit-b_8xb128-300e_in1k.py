# paper: top-1 81.8
_base_ = [
    '../_base_/models/classifier_in1k.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/adamw_300e_in1k.py', '../_base_/classifier_runtime.py'
]
model = dict(backbone=dict(type='mmtok.DeiT', arch='base'))
train_dataloader = dict(sampler=dict(num_repeats=3))
default_hooks = dict(ema=dict(type='mmtok.EMAHook', momentum=0.00004, update_buffers=True))
