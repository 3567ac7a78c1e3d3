# A model as small as it gets with all that a training keeps: MoTo, TokenProp, drop path, dropout, a schedule.
# GN heads, and no random augmentation.
_base_ = '../../configs/demo/upernet_deit-nano_moto-tokenprop_1xb8-1.2k_drawn-128x128.py'
iterations = 14
norm_cfg = dict(_delete_=True, type='GN', num_groups=4)
model = dict(
    backbone=dict(
        arch=dict(embed_dims=32, num_heads=2),
        drop_path_rate=0.2,
        token_prop=dict(output_scale=32)),
    neck=dict(in_channels=[32] * 4, out_channels=16, norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[16] * 4, channels=16, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=16, channels=16, norm_cfg=norm_cfg))
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', reduce_zero_label=True),
        dict(type='PackSegInputs'),
    ]))
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=5),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=5, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, max_keep_ckpts=1))
log_processor = dict(window_size=1)
randomness = dict(seed=None)
