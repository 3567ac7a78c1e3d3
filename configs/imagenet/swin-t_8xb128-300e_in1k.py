# paper: top-1 81.2
_base_ = [
    '../_base_/models/classifier_in1k.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/adamw_300e_in1k.py', '../_base_/classifier_runtime.py'
]
model = dict(backbone=dict(type='mmtok.Swin', arch='tiny', window_rule='classification', drop_path_rate=0.2))
# WARMUP_PREFIX is the default of the authors' code today; their first version had no such option
param_scheduler = dict(warmup=20, warmup_prefix=True, by_epoch=True, convert_to_iter_based=True)
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
