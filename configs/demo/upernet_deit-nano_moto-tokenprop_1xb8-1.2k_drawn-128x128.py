# A small UperNet with MoTo and TokenProp for 2 CPU cores; `make demo` trains it
_base_ = [
    '../_base_/models/upernet_deit-s.py', '../_base_/datasets/drawn_128x128.py', '../_base_/schedules/adamw_160k.py',
    '../_base_/default_runtime.py'
]
width, iterations = 128, 1200
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=width, depth=4, num_heads=4),
        img_size=128,
        patch_size=8,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(),
        init_cfg=None),
    neck=dict(in_channels=[width] * 4, out_channels=64, scales=[2, 1, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[64] * 4, channels=64, num_classes=6, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=64, num_classes=6, norm_cfg=norm_cfg))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=iterations))
randomness = dict(seed=0)
