# The demo's model on 8 real images, resized to 192x192 and not augmented: it should memorise them.
# Scored at the images' own size.
_base_ = [
    '../../configs/_base_/models/upernet_deit-nano.py', '../../configs/_base_/datasets/ade20k_512x512.py',
    '../../configs/_base_/schedules/adamw_160k.py', '../../configs/_base_/mmseg_runtime.py'
]
iterations = 500
model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(img_size=192),
    decode_head=dict(dropout_ratio=0.0),
    auxiliary_head=dict(dropout_ratio=0.0))
load, annotate = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)
resize, pack = dict(type='Resize', scale=(192, 192), keep_ratio=False), dict(type='PackSegInputs')
images = dict(img_path='images/training', seg_map_path='annotations/training')
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_prefix=images, pipeline=[load, annotate, resize, pack], indices=8))
val_dataloader = dict(
    num_workers=1, dataset=dict(data_prefix=images, pipeline=[load, resize, annotate, pack], indices=8))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=iterations))
randomness = dict(seed=0)
