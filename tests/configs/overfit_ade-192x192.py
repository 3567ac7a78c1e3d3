# 8 real images at 192x192 without augmentation: a segmentor with MoTo and TokenProp should memorise them.
# DeiT of width 128 and depth 4 with 8x8 patches; heads of 64 channels.
_base_ = '../../configs/upernet/upernet_deit-s_moto-tokenprop_8xb2-160k_ade20k-512x512.py'
width, heads, iterations = 128, 64, 500
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=width, depth=4, num_heads=4),
        img_size=192,
        patch_size=8,
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
        init_cfg=None),
    neck=dict(in_channels=[width] * 4, out_channels=heads, scales=[2, 1, 1, 0.5], norm_cfg=norm_cfg),
    decode_head=dict(in_channels=[heads] * 4, channels=heads, norm_cfg=norm_cfg, dropout_ratio=0.0),
    auxiliary_head=dict(in_channels=heads, channels=heads, norm_cfg=norm_cfg, dropout_ratio=0.0))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='Resize', scale=(192, 192), keep_ratio=False),
    dict(type='PackSegInputs'),
]
images = dict(img_path='images/training', seg_map_path='annotations/training')
train_dataloader = dict(
    batch_size=8, num_workers=1, dataset=dict(data_prefix=images, pipeline=pipeline, indices=8))
val_dataloader = dict(num_workers=1, dataset=dict(data_prefix=images, pipeline=pipeline, indices=8))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=500)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=iterations))
randomness = dict(seed=0)
