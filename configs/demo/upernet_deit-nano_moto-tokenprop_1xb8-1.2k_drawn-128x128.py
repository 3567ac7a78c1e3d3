# What `make demo` trains: MoTo and TokenProp on drawn images, in minutes on 2 CPU cores
_base_ = [
    '../_base_/models/upernet_deit-nano.py', '../_base_/datasets/drawn_128x128.py',
    '../_base_/schedules/adamw_160k.py', '../_base_/mmseg_runtime.py'
]
iterations = 1200
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(img_size=128),
    decode_head=dict(num_classes=6),
    auxiliary_head=dict(num_classes=6))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=50, end=iterations, by_epoch=False),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=iterations))
randomness = dict(seed=0)
